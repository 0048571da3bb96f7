import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medplan.data.labels import LabelSpace
from medplan.errors import DataError
from medplan.evaluate.metrics import score_case
from medplan.evaluate.summary import (
    CaseScores,
    Summary,
    across,
    class_keys,
    joined,
    read_summary,
    write_summary,
)

LABELS = LabelSpace(names=("liver", "spleen"), values=((1,), (7,)))


def make_summary(num_cases: int = 6, *, seed: int = 0, flips: float = 0.1) -> Summary:
    """Random label maps and predictions that are wrong in some voxels; the last case has no spleen."""
    rng = np.random.default_rng(seed)
    cases = []
    for number in range(num_cases):
        reference = rng.choice(np.array([0, 1, 7], dtype=np.uint8), size=(5, 6, 7))
        if number == num_cases - 1:
            reference[reference == 7] = 0
        prediction = np.where(rng.random(reference.shape) < flips, 1, reference)
        scores = score_case(prediction, reference, labels=LABELS, spacing_mm=(2.0, 1.0, 1.0))
        name = f"case{number}.nii.gz"
        cases.append(CaseScores(id=f"case{number}", prediction=Path("p", name), reference=Path("r", name),
                                scores=scores))  # fmt: skip
    return Summary(class_names=LABELS.names, class_keys=class_keys(LABELS), cases=tuple(cases))


def test_mean_is_over_cases_then_classes_without_the_undefined_ones() -> None:
    summary = make_summary()
    liver = [case.scores[0].dice for case in summary.cases]
    spleen = [case.scores[1].dice for case in summary.cases[:-1]]
    assert math.isnan(summary.cases[-1].scores[1].dice)
    assert summary.mean("dice") == pytest.approx((np.mean(liver) + np.mean(spleen)) / 2)


def test_pooled_dice_is_that_of_all_voxels_together() -> None:
    summary = make_summary()
    for row, pooled in enumerate(summary.pooled_dice()):
        scores = [case.scores[row] for case in summary.cases]
        tp, wrong = sum(s.tp for s in scores), sum(s.fp + s.fn for s in scores)
        assert pooled == pytest.approx(2 * tp / (2 * tp + wrong))


def test_outcomes_count_every_case_once() -> None:
    summary = make_summary()
    counts = [summary.outcomes(name) for name in ("both", "missed", "false alarm", "absent")]
    assert np.sum(counts, axis=0).tolist() == [6, 6]
    assert summary.outcomes("absent") == (0, 1)


def test_false_positive_volume_is_the_mean_over_cases_without_the_class() -> None:
    summary = make_summary()
    assert math.isnan(summary.false_positive_ml()[0]) and summary.false_positive_ml()[1] == 0
    reference = np.zeros((5, 6, 7), dtype=np.uint8)
    prediction = reference.copy()
    prediction[0, 0, :5] = 7
    scores = score_case(prediction, reference, labels=LABELS, spacing_mm=(2.0, 1.0, 1.0))
    invented = CaseScores(id="case6", prediction=Path("p"), reference=Path("r"), scores=scores)
    assert replace(summary, cases=(*summary.cases, invented)).false_positive_ml() == (0, 5 * 2 / 1000 / 2)


def test_bootstrap_interval_holds_the_mean_and_narrows_with_cases() -> None:
    few, many = make_summary(6).interval("dice"), make_summary(60).interval("dice")
    for found in (few, many):
        assert found.low < found.mean < found.high
    assert many.high - many.low < few.high - few.low
    assert make_summary(6).interval("dice") == few, "the resamples are the same every time"


def test_bootstrap_agrees_with_the_normal_interval_for_one_class() -> None:
    summary = make_summary(200)
    only = Summary(class_names=("liver",), class_keys=("1",), cases=tuple(
        CaseScores(id=c.id, prediction=c.prediction, reference=c.reference, scores=c.scores[:1])
        for c in summary.cases))  # fmt: skip
    values = only.table("dice")[:, 0]
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    found = only.interval("dice")
    assert found.mean - found.low == pytest.approx(half, rel=0.1)
    assert found.high - found.mean == pytest.approx(half, rel=0.1)


def test_interval_across_runs_is_students() -> None:
    found = across([0.8, 0.9, 0.85, math.nan])
    assert found.count == 3
    assert found.mean == pytest.approx(0.85)
    assert found.high - found.mean == pytest.approx(4.3027 * 0.05 / math.sqrt(3), rel=1e-4)
    assert math.isnan(across([0.8]).low)


def test_worst_cases_come_first() -> None:
    dices = [case.mean("dice") for case in make_summary().ranked()]
    assert dices == sorted(dices)


def test_summary_json_has_the_shape_of_nnunet(tmp_path: Path) -> None:
    data = json.loads(write_summary(make_summary(), tmp_path).read_text())
    assert {"foreground_mean", "mean", "metric_per_case"} <= data.keys()
    wanted = {"Dice", "IoU", "FN", "FP", "TN", "TP", "n_pred", "n_ref"}
    assert wanted <= data["foreground_mean"].keys()
    assert list(data["mean"]) == ["1", "7"]
    for entry in data["metric_per_case"]:
        assert {"metrics", "prediction_file", "reference_file"} <= entry.keys()
        assert all(wanted <= entry["metrics"][key].keys() for key in ("1", "7"))
    assert data["foreground_mean"]["Dice"] == pytest.approx(
        np.mean([data["mean"][key]["Dice"] for key in ("1", "7")])
    )


def test_a_summary_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    summary = make_summary()
    assert repr(read_summary(write_summary(summary, tmp_path))) == repr(summary)


def test_a_summary_of_nnunet_is_read(tmp_path: Path) -> None:
    metrics = {"Dice": 0.5, "IoU": 1 / 3, "TP": 1, "FP": 1, "FN": 1, "TN": 5, "n_pred": 2, "n_ref": 2}
    case = {"metrics": {"1": metrics}, "prediction_file": "p/a.nii.gz", "reference_file": "r/a.nii.gz"}
    file = tmp_path / "summary.json"
    file.write_text(
        json.dumps({"foreground_mean": metrics, "mean": {"1": metrics}, "metric_per_case": [case]})
    )
    summary = read_summary(file)
    assert (summary.cases[0].id, summary.class_names, summary.mean("dice")) == ("a", ("1",), 0.5)


def test_what_is_no_summary_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(DataError, match="not a summary"):
        read_summary(tmp_path / "summary.json")
    with pytest.raises(DataError, match="no such file"):
        read_summary(tmp_path / "other.json")


def test_the_table_has_a_row_per_case_and_class(tmp_path: Path) -> None:
    write_summary(make_summary(), tmp_path)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert len(rows) == 12
    assert {row["class"] for row in rows} == {"liver", "spleen"}
    assert rows[-1]["outcome"] == "absent"


def test_regions_are_named_by_their_raw_values() -> None:
    labels = LabelSpace(names=("whole", "core"), values=((1, 2), (2,)), region_order=(1, 2))
    assert class_keys(labels) == ("(1, 2)", "2")


def test_folds_join_to_one_evaluation_unless_they_share_a_case() -> None:
    first, whole = make_summary(3), make_summary(6)
    rest = replace(whole, cases=whole.cases[3:])
    both = joined([rest, first])
    assert both is not None and [case.id for case in both.cases] == [case.id for case in whole.cases]
    assert joined([first, whole]) is None
