import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import wilcoxon

from medplan.cli import main
from medplan.commands.comparison import _names
from medplan.errors import DataError
from medplan.evaluate.compare import Comparison, Entry, compare
from medplan.evaluate.metrics import ClassScore
from medplan.evaluate.summary import CaseScores, Summary, write_summary

BASE = {"a": 0.5, "b": 0.6, "c": 0.7, "d": 0.8, "e": 0.9, "f": 0.55}


def summary_of(dice: dict[str, float]) -> Summary:
    cases = []
    for case, value in dice.items():
        score = ClassScore(dice=value, iou=value, tp=1, fp=0, fn=0, tn=9, n_pred=1, n_ref=1, hd95=2, nsd=1)
        cases.append(CaseScores(id=case, prediction=Path(case), reference=Path(case), scores=(score, score)))
    return Summary(class_names=("liver", "spleen"), class_keys=("1", "2"), cases=tuple(cases))


def entry(name: str, *runs: dict[str, float]) -> Entry:
    return Entry(name=name, runs={str(number): {"0": summary_of(run)} for number, run in enumerate(runs)})


def shifted(by: float) -> dict[str, float]:
    return {case: value + by * (1 + number / 10) for number, (case, value) in enumerate(BASE.items())}


def test_differences_are_taken_case_by_case_and_corrected_for_their_number() -> None:
    found = compare([entry("first", BASE), entry("better", shifted(0.05)), entry("same", BASE)])
    better, same = found.differences
    each = [shifted(0.05)[case] - BASE[case] for case in BASE]
    assert list(better.cases.values()) == pytest.approx(each)
    assert better.mean.low > 0.04 and better.mean.mean == pytest.approx(sum(each) / 6)
    assert better.p == pytest.approx(2 * wilcoxon(each).pvalue)
    assert same.p == 1 and same.mean.mean == 0


def test_runs_of_one_entry_count_once_with_the_mean_of_their_scores() -> None:
    found = compare([entry("first", BASE, shifted(0.1)), entry("other", shifted(0.05))])
    assert found.differences[0].mean.mean == pytest.approx(0)
    assert found.run_deviation(found.entries[0]) == pytest.approx(0.125 / math.sqrt(2))
    assert math.isnan(found.run_deviation(found.entries[1]))


def test_only_cases_that_all_have_are_compared_and_what_is_left_out_is_counted() -> None:
    fewer = {case: BASE[case] for case in "bcd"}
    found = compare([entry("first", BASE), entry("other", fewer)])
    assert found.cases == ("b", "c", "d") and found.left_out == (3, 0)
    assert found.interval(found.entries[0], "dice").mean == pytest.approx(0.7)
    with pytest.raises(
        DataError, match=r"no case that all of these.*'first' \(6 cases\), 'other' \(1 cases\)"
    ):
        compare([entry("first", BASE), entry("other", {"z": 0.5})])


def test_a_summary_of_nnunet_is_matched_by_the_values_of_its_classes() -> None:
    theirs = summary_of(BASE)
    theirs = Summary(class_names=("2", "1"), class_keys=("2", "1"), cases=theirs.cases)
    found = compare([entry("ours", BASE), Entry(name="theirs", runs={"": {"": theirs}})])
    assert found.classes == ("1", "2")
    assert isinstance(found, Comparison) and found.differences[0].p == 1


def write_run(folder: Path, dice: dict[str, float], **plan: Any) -> str:
    half = len(dice) // 2
    for fold, cases in enumerate((list(dice)[:half], list(dice)[half:])):
        target = folder / f"fold_{fold}"
        write_summary(summary_of({case: dice[case] for case in cases}), target / "validation" / "best")
        content = {"training": {"seed": 0}, "datasets": [{"folds": [{"labelled": ["x"]}]}]} | plan
        (target / "plan.json").write_text(json.dumps(content))
        lines = ({"step": step, "phase": "main", "validation": {"score": step / 9}} for step in (1, 2))
        (target / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder)


def test_seeds_are_one_method_folds_are_joined_and_every_score_is_in_the_csv(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        write_run(tmp_path / "D/supervised/s0", BASE),
        write_run(tmp_path / "D/supervised/s1", shifted(0.02), training={"seed": 1}),
        write_run(tmp_path / "D/other/s0", shifted(0.05), method="other"),
    ]
    page = tmp_path / "c.html"
    assert main(["compare", *runs, "-o", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "6 cases, 2 classes" in printed and "Dice minus that of 'supervised', case by case" in printed
    text = page.read_text()
    assert "Every case (6 cases)" in text and "Validation during training" in text and "http" not in text
    rows = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    assert len(rows) == 3 * 6 * 2
    assert {(row["method"], row["fold"]) for row in rows} == {
        (method, fold) for method in ("supervised", "other") for fold in "01"
    }


def test_names_tell_apart_what_is_compared_and_say_no_more(tmp_path: Path) -> None:
    def names(*runs: str) -> list[str]:
        for run in runs:
            (tmp_path / run / ("summary.json" if run == "out" else "fold_0")).mkdir(
                parents=True, exist_ok=True
            )
        return _names([[tmp_path / run] for run in runs])

    theirs = "r/Dataset001_D/nnUNetTrainer__nnUNetPlans__2d"
    assert names("r/D/a/s0", "r/D/b/s0", "out") == ["a", "b", "out"]
    assert names("r/D/a/s0", theirs) == ["a", "nnUNetTrainer__nnUNetPlans__2d"]
    assert names("r/D/a/s0", "r/D/a/s1") == ["s0", "s1"]
    assert names("r/D/a/s0", "r/D/b/s0", "r/D/b/s1") == ["a/s0", "b/s0", "b/s1"]
    assert names("r/D/a/s0", "r/E/a/s0/fold_0") == ["D/a/s0", "E/a/s0"]
    assert names("r/D/a/s0") == ["a"] and names("r/D/a/s2", "r/D/b/s0") == ["a", "b"]
    seeds = [[tmp_path / "r/D/a/s0", tmp_path / "r/D/a/s1"], [tmp_path / "r/D/a/s2"], [tmp_path / "r/D/b/s0"]]
    assert _names(seeds) == ["a/s0+s1", "a/s2", "b/s0"]


def test_what_cannot_be_compared_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "D/supervised/s0", BASE)
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        ([run, run], "named twice"),
        ([run, str(tmp_path / "empty")], "holds no evaluation"),
        ([run, "-o", str(tmp_path / "folder")], "-o should name a page"),
    ):
        assert main(["compare", *arguments]) == 2
        assert said in capsys.readouterr().err
