"""Predictions without references can be looked at."""

from pathlib import Path

import numpy as np
import pytest

from medplan.cli import main
from medplan.data.images import Geometry, write_image, write_label
from medplan.data.labels import LabelSpace
from medplan.evaluate import sections
from medplan.evaluate.previews import write_previews
from medplan.evaluate.summary import across
from tests.evaluate.test_report import check

LABELS = LabelSpace(names=("liver <left>", "spleen"), values=((1,), (2,)))
GRID = Geometry(shape=(10, 24, 20), spacing_mm=(3.0, 1.0, 1.0))


@pytest.fixture
def predictions(tmp_path: Path) -> dict[str, Path]:
    """Five alike, one with a liver far too large, one without a spleen."""
    found = {}
    for number in range(7):
        label = np.zeros(GRID.shape, dtype=np.uint8)
        label[3:6, 4:10, 4 : 10 + number % 2] = 1
        if number == 5:
            label[1:9, 2:20, 2:18] = 1
        if number != 6:
            label[3:6, 12:16, 4:10] = 2
        name = f"case{number}"
        found[name] = write_label(tmp_path / "out" / f"{name}.nii.gz", label, GRID)
        scan = np.random.default_rng(number).normal(size=GRID.shape).astype(np.float32)
        write_image(tmp_path / "in" / f"{name}_0000.nii.gz", scan, GRID)
    return found


def test_what_is_unusual_comes_first_and_nothing_is_loaded(
    predictions: dict[str, Path], tmp_path: Path
) -> None:
    images = {name: (tmp_path / "in" / f"{name}_0000.nii.gz",) for name in predictions if name != "case3"}
    page = write_previews(predictions, tmp_path / "p.html", images=images, labels=LABELS, title="out & in")
    text, checker = page.read_text(), check(page)
    assert checker.tags.count("img") == 6 and all(each.startswith("data:") for each in checker.loads)
    order = sorted(predictions, key=lambda name: text.index(f"<b>{name}</b>"))
    assert order == ["case5", "case6", "case0", "case1", "case2", "case3", "case4"]
    assert text.count("look here") == 2 and "Its image was not found" in text
    assert "liver &lt;left&gt; unusually large" in text and "no spleen found" in text
    assert "0.324 ml" in text  # 3 x 6 x 6 voxels of 3 mm3


def test_the_command_shows_predictions_that_were_not_evaluated(
    predictions: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["report", "-i", str(tmp_path / "out"), "--workspace", str(tmp_path)]
    assert main(asked) == 2
    assert "dataset.json that 'predict' writes" in capsys.readouterr().err
    (tmp_path / "out" / "dataset.json").write_text(
        '{"name": "A", "channel_names": {"0": "MR"}, "file_ending": ".nii.gz", '
        '"labels": {"background": 0, "liver": 1, "spleen": 2}}'
    )
    assert main([*asked, "--images", str(tmp_path / "in")]) == 0
    assert (tmp_path / "out" / "report.html").read_text().count("<img") == 7
    assert main([*asked, "-o", str(tmp_path / "bare.html")]) == 0  # its dataset is nowhere to be found
    assert (tmp_path / "bare.html").read_text().count("Its image was not found") == 7


def test_evaluating_a_folder_that_is_not_there_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "-i", str(tmp_path / "x"), "-r", str(tmp_path)]) == 2
    assert "There is no folder or file" in capsys.readouterr().err


def test_intervals_of_two_runs_stay_within_what_a_score_can_be() -> None:
    interval = sections._within(across([0.1, 0.9]), 1.0)
    assert (interval.low, interval.high, interval.mean) == (0.0, 1.0, 0.5)
    assert np.isnan(sections._within(across([0.5]), 1.0).low)
