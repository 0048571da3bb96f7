import json
from pathlib import Path

import pytest

from medplan.errors import DataError
from medplan.evaluate.plots import progress
from medplan.evaluate.training_log import read_log


def write_log(path: Path, *entries: dict[str, object], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + tail)
    return path


def test_every_finite_number_becomes_a_curve_of_its_group(tmp_path: Path) -> None:
    log = write_log(
        tmp_path / "log.jsonl",
        {"step": 1, "phase": "main", "losses": {"loss": 2.0}, "lr": {"main": 0.1}, "seconds": 0.5},
        {"step": 1, "phase": "main", "validation": {"score": 0.5, "lr of the liver": 0.25}},
        {"step": 5, "phase": "main", "losses": {"loss": float("nan"), "norm": 3.0}},
        tail='{"step": 10, "lo',
    )
    training = read_log(log)
    named = {kind: set(training.of_kind(kind)) for kind in ("losses", "validation", "lr", "other")}
    assert named["losses"] == {"loss", "norm"} and named["validation"] == {"score", "lr of the liver"}
    assert named["lr"] == {"main"} and named["other"] == {"seconds"}
    loss = training.curves["losses/loss"]
    assert (loss.steps, loss.values) == ((1,), (2.0,))


def test_steps_repeated_after_a_resume_replace_those_before(tmp_path: Path) -> None:
    points = ((0, 3), (5, 2), (10, 9), (5, 1), (10, 0))
    entries = [{"step": step, "phase": "main", "losses": {"loss": loss}} for step, loss in points]
    curve = read_log(write_log(tmp_path / "log.jsonl", *entries)).of_kind("losses")["loss"]
    assert (curve.steps, curve.values) == ((0, 5, 10), (3, 1, 0))


def test_phases_begin_at_their_first_line(tmp_path: Path) -> None:
    steps = {"encoder": (10, 20), "bilevel": (30, 40)}
    entries = [{"step": step, "phase": phase} for phase, own in steps.items() for step in own]
    assert read_log(write_log(tmp_path / "log.jsonl", *entries)).phases == (("encoder", 10), ("bilevel", 30))


def test_progress_is_drawn_from_the_first_line_on(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    for count in (0, 1, 40):
        numbers = (
            {"losses": {"loss": 1 / (s + 1)}, "lr": {"main": 0.1}, "validation": {"score": s / 50}}
            for s in range(count)
        )
        entries = [{"step": s, "phase": "main", **more} for s, more in enumerate(numbers)]
        png = progress(write_log(log, *entries), tmp_path / "progress.png")
        assert png.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "progress.png"]


def test_a_log_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_log(tmp_path / "log.jsonl")
