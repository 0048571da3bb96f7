"""The picture of a training run can be drawn whatever the number of classes."""

import json
import warnings
from pathlib import Path

import pytest

from medplan.evaluate.plots import progress


@pytest.mark.parametrize("num_classes", [1, 142])
def test_curves_of_any_number_of_classes_fit_the_picture(tmp_path: Path, num_classes: int) -> None:
    scores = {f"a structure with quite a long name {number}": 0.5 for number in range(num_classes)}
    lines = [
        {"step": step, "phase": "train", "losses": {"loss": 1 / step}, "lr": 0.01, "validation": scores}
        for step in (1, 2, 3)
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = progress(tmp_path / "log.jsonl", tmp_path / "progress.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"
