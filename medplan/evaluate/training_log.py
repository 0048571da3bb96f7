"""The training log (one JSON object of numbers per line) as curves over the steps of the whole run."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medplan.errors import DataError

__all__ = ["Curve", "Kind", "TrainingLog", "kind_of", "read_log"]

Kind = Literal["loss", "validation", "rate", "other"]

COUNTERS = ("step", "num_steps", "epoch", "fold", "seed", "rank", "phase_step")
BESIDES = (
    "time",
    "second",
    "memory",
    "bytes",
    "norm",
    "speed",
    "per_s",
    "eta",
    "fraction",
    "gpu",
    "rss",
    "wait",
)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One logged number over the steps of the run."""

    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """All curves of a run.

    Attributes:
        curves: by the key they were logged under.
        phases: name and first step of each phase, in order.
    """

    curves: Mapping[str, Curve] = field(default_factory=dict)
    phases: tuple[tuple[str, float], ...] = ()

    def of_kind(self, kind: Kind) -> dict[str, Curve]:
        return {name: curve for name, curve in self.curves.items() if kind_of(name) == kind}


def kind_of(name: str) -> Kind:
    """Tell what a logged number is from its key."""
    key = name.lower()
    if "lr" in re.split(r"[/_.]", key) or "learning_rate" in key:
        return "rate"
    if key.startswith(("val", "score", "best")):
        return "validation"
    return "other" if any(word in key for word in BESIDES) else "loss"


def read_log(path: Path) -> TrainingLog:
    """Read a log; a line that was cut off by a crash, and repeated steps after a resume, are put right.

    Steps that begin again with a new phase are continued from where the phase before ended.

    Raises: DataError if there is no such file.
    """
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; training writes it into the run folder.") from None
    found: dict[str, dict[float, float]] = {}
    phases: dict[str, float] = {}
    offset = last = 0.0
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(entry, dict) or not _is_number(entry.get("step")):
            continue
        phase = str(entry.get("phase", ""))
        step = offset + float(entry["step"])
        if phase not in phases:
            if phases and step < last:
                offset = last
                step = offset + float(entry["step"])
            phases[phase] = step
        last = max(last, step)
        for key, value in _numbers(entry):
            found.setdefault(key, {})[step] = value
    curves = {
        key: Curve(steps=tuple(sorted(points)), values=tuple(points[step] for step in sorted(points)))
        for key, points in found.items()
    }
    return TrainingLog(curves=curves, phases=tuple(phases.items()))


def _numbers(entry: Mapping[str, object], prefix: str = "") -> list[tuple[str, float]]:
    numbers: list[tuple[str, float]] = []
    for key, value in entry.items():
        if isinstance(value, Mapping):
            numbers += _numbers(value, f"{prefix}{key}/")
        elif prefix + key not in COUNTERS and _is_number(value) and math.isfinite(float(value)):  # type: ignore[arg-type]
            numbers.append((prefix + key, float(value)))  # type: ignore[arg-type]
    return numbers


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
