import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medplan.data.images import Geometry, write_label
from medplan.data.labels import LabelSpace
from medplan.errors import DataError
from medplan.evaluate.report import Evaluation, write_report
from medplan.evaluate.run import evaluate, pair_up
from medplan.evaluate.summary import read_summary
from medplan.predict.outputs import Output, output_path
from medplan.records import write_json

LABELS = LabelSpace(names=("organ", "tumour"), values=((1,), (2,)))
GRID = Geometry(shape=(4, 6, 8), spacing_mm=(3.0, 1.0, 0.5), origin_mm=(5.0, -3.0, 2.0))


def write(path: Path, *, value: int = 1, shift: int = 0, grid: Geometry = GRID) -> Path:
    array = np.zeros(grid.shape, dtype=np.uint8)
    array[..., 1:5, 2 + shift : 6 + shift] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_label(path, array, grid)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for number in range(3):
        write(predictions / f"case{number}.nii.gz", shift=number)
        write(references / f"case{number}.nii.gz")
    return predictions, references


@pytest.mark.parametrize("workers", [1, 3])
def test_a_folder_is_scored_in_order_whatever_the_workers(folders: tuple[Path, Path], workers: int) -> None:
    summary = evaluate(*folders, LABELS, workers=workers)
    assert [case.id for case in summary.cases] == ["case0", "case1", "case2"]
    assert [case.scores[0].dice for case in summary.cases] == [1.0, 0.75, 0.5]
    assert [case.scores[0].hd95 for case in summary.cases] == [0.0, 0.5, 1.0]
    assert summary.outcomes("absent") == (0, 3)
    assert json.loads((folders[0] / "summary.json").read_text())["foreground_mean"]["Dice"] == 0.75
    assert (folders[0] / "metrics.csv").is_file()


def test_endings_may_differ_and_files_may_be_named_one_by_one(tmp_path: Path) -> None:
    predicted, true = write(tmp_path / "p" / "a.1.nrrd"), write(tmp_path / "r" / "a.1.nii.gz")
    assert evaluate(tmp_path / "p", tmp_path / "r", LABELS, output=tmp_path / "out").mean("dice") == 1
    assert (tmp_path / "out" / "summary.json").is_file()
    other = write(tmp_path / "q" / "other.mha")
    assert evaluate(other, true, LABELS).mean("dice") == evaluate(predicted, true, LABELS).mean("dice") == 1


def test_pictures_are_measured_in_pixels(tmp_path: Path) -> None:
    grid = Geometry(shape=(1, 8, 12), spacing_mm=None)
    write(tmp_path / "p" / "a.png", shift=2, grid=grid)
    write(tmp_path / "r" / "a.png", grid=grid)
    summary = evaluate(tmp_path / "p", tmp_path / "r", LABELS)
    assert (summary.unit, summary.cases[0].scores[0].hd95) == ("px", 2.0)
    assert np.isnan(summary.cases[0].scores[0].volume_ref_ml)


def test_missing_predictions_stop_unless_allowed(folders: tuple[Path, Path]) -> None:
    (folders[0] / "case1.nii.gz").unlink()
    with pytest.raises(DataError, match=r"1 of 3 references have no prediction \(case1\).*--allow-missing"):
        evaluate(*folders, LABELS)
    summary = evaluate(*folders, LABELS, allow_missing=True)
    assert ([case.id for case in summary.cases], summary.missing) == (["case0", "case2"], ("case1",))


def test_surplus_predictions_are_left_out_and_said_so(
    folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    write(folders[0] / "stranger.nii.gz")
    with caplog.at_level(logging.WARNING):
        pairs, _ = pair_up(*folders)
    assert [case for case, _, _ in pairs] == ["case0", "case1", "case2"]
    assert "stranger" in caplog.text


def test_names_that_never_match_are_an_error(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write(tmp_path / "other" / "case_0.nii.gz")
    with pytest.raises(DataError, match=r"case_0.*did you mean 'case0'"):
        evaluate(tmp_path / "other", folders[1], LABELS)
    with pytest.raises(DataError, match="no such folder"):
        evaluate(tmp_path / "nowhere", folders[1], LABELS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no label files"):
        evaluate(tmp_path / "empty", folders[1], LABELS)


@pytest.mark.parametrize(
    ("grid", "what"),
    [
        (Geometry(shape=(4, 6, 9), spacing_mm=GRID.spacing_mm, origin_mm=GRID.origin_mm), "shape"),
        (Geometry(shape=GRID.shape, spacing_mm=(3.0, 1.0, 0.6), origin_mm=GRID.origin_mm), "spacing"),
        (Geometry(shape=GRID.shape, spacing_mm=GRID.spacing_mm, origin_mm=(5.0, -3.0, 4.0)), "origin"),
        (
            Geometry(shape=GRID.shape, spacing_mm=GRID.spacing_mm, origin_mm=GRID.origin_mm,
                     direction=(-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)),
            "direction",
        ),
    ],
)  # fmt: skip
def test_grids_that_differ_are_an_error(tmp_path: Path, grid: Geometry, what: str) -> None:
    write(tmp_path / "p" / "a.nii.gz", grid=grid)
    write(tmp_path / "r" / "a.nii.gz")
    with pytest.raises(DataError, match=f"case 'a': .*{what}"):
        evaluate(tmp_path / "p", tmp_path / "r", LABELS)


def test_values_that_are_not_declared_name_the_file(tmp_path: Path) -> None:
    write(tmp_path / "p" / "a.nii.gz", value=4)
    write(tmp_path / "r" / "a.nii.gz")
    with pytest.raises(DataError, match=r"p/a\.nii\.gz.*\[4\]"):
        evaluate(tmp_path / "p", tmp_path / "r", LABELS)


def test_evaluation_imports_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, medplan.evaluate.run, medplan.evaluate.report, medplan.evaluate.plots\n"
        "assert not {'torch', 'matplotlib', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_figures_beside_predictions_are_summed_up_and_their_volumes_not_scored(
    folders: tuple[Path, Path],
) -> None:
    predictions, references = folders
    for number in range(2):
        figures = {"folding_percent": number, "lncc_after": 0.5, "note": "not a number", "bad": math.nan}
        (predictions / f"case{number}_extras.json").write_text(json.dumps(figures))
    besides = write(predictions / "case0_registered.nii.gz")
    files = {"case0.nii.gz": "", besides.name: ""}
    write_json(Output(made_from="", files=files), output_path(predictions, "case0"))
    summary = evaluate(predictions, references, LABELS, surface=False)
    assert [case.id for case in summary.cases] == ["case0", "case1", "case2"]
    assert {name: found.mean for name, found in summary.figures().items()} == {
        "folding_percent": 0.5,
        "lncc_after": 0.5,
    }
    assert summary.figures()["lncc_after"].count == 2
    lines = (predictions / "figures.csv").read_text().splitlines()
    assert lines == ["case,folding_percent,lncc_after", "case0,0,0.5", "case1,1,0.5", "case2,,"]
    again = read_summary(predictions / "summary.json")
    assert again.figures() == summary.figures()
    page = write_report(
        predictions, predictions / "r.html", evaluations=[Evaluation(name="v", summary=again)]
    )
    assert "folding percent" in page.read_text()


def test_a_case_is_scored_whose_name_begins_like_that_of_one_with_figures(tmp_path: Path) -> None:
    for folder in ("p", "r"):
        for case in ("a", "a_1"):
            write(tmp_path / folder / f"{case}.nii.gz")
    (tmp_path / "p" / "a_extras.json").write_text("{}")
    summary = evaluate(tmp_path / "p", tmp_path / "r", LABELS, surface=False)
    assert [case.id for case in summary.cases] == ["a", "a_1"]


def test_without_figures_nothing_is_said_of_them(folders: tuple[Path, Path]) -> None:
    summary = evaluate(*folders, LABELS, surface=False)
    assert summary.figures() == {} and not (folders[0] / "figures.csv").exists()


def test_a_broken_file_of_figures_is_named(folders: tuple[Path, Path]) -> None:
    (folders[0] / "case1_extras.json").write_text("[1, 2")
    with pytest.raises(DataError, match="does not hold figures"):
        evaluate(*folders, LABELS, surface=False)
