import json
from pathlib import Path

import pytest

from medplan.errors import DataError
from medplan.evaluate.plots import progress
from medplan.evaluate.training_log import kind_of, read_log


def write_log(path: Path, *entries: dict[str, object], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + tail)
    return path


def test_any_number_becomes_a_curve_and_anything_else_is_passed_over(tmp_path: Path) -> None:
    log = write_log(
        tmp_path / "log.jsonl",
        {"step": 0, "phase": "main", "loss": 2.0, "val": {"liver": 0.5}, "case": "a", "done": True},
        {"step": 5, "phase": "main", "loss": float("nan"), "lr": 0.1},
        {"message": "no step"},
        tail='{"step": 10, "lo',
    )
    curves = read_log(log).curves
    assert curves.keys() == {"loss", "val/liver", "lr"}
    assert (curves["loss"].steps, curves["loss"].values) == ((0.0,), (2.0,))


def test_steps_repeated_after_a_resume_replace_those_before(tmp_path: Path) -> None:
    points = ((0, 3), (5, 2), (10, 9), (5, 1), (10, 0))
    entries = [{"step": step, "phase": "main", "loss": loss} for step, loss in points]
    curve = read_log(write_log(tmp_path / "log.jsonl", *entries)).curves["loss"]
    assert (curve.steps, curve.values) == ((0, 5, 10), (3, 1, 0))


def test_a_phase_that_counts_from_zero_continues_where_the_last_one_ended(tmp_path: Path) -> None:
    entries = [
        {"step": s, "phase": phase, "loss": 1.0} for phase in ("encoder", "bilevel") for s in (0, 10, 20)
    ]
    log = read_log(write_log(tmp_path / "log.jsonl", *entries))
    assert log.curves["loss"].steps == (0, 10, 20, 30, 40)
    assert log.phases == (("encoder", 0), ("bilevel", 20))


@pytest.mark.parametrize(
    ("key", "kind"),
    [("loss", "loss"), ("ce", "loss"), ("flow_smoothness", "loss"), ("val_dice", "validation"),
     ("score", "validation"), ("lr", "rate"), ("lr/main", "rate"), ("main_lr", "rate"),
     ("grad_norm/seg", "other"),
     ("seconds", "other")],
)  # fmt: skip
def test_curves_are_told_apart_by_their_key(key: str, kind: str) -> None:
    assert kind_of(key) == kind


def test_progress_is_drawn_from_the_first_line_on(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    for count in (0, 1, 40):
        numbers = ({"loss": 1 / (s + 1), "lr": 0.1, "val_dice": s / 50} for s in range(count))
        entries = [{"step": s, "phase": "main", **more} for s, more in enumerate(numbers)]
        png = progress(write_log(log, *entries), tmp_path / "progress.png")
        assert png.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "progress.png"]


def test_a_log_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_log(tmp_path / "log.jsonl")
