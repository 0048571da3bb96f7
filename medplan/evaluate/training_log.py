"""The training log (see `medplan.train.log`) as curves over the steps of the whole run."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medplan.errors import DataError

__all__ = ["Curve", "Kind", "TrainingLog", "read_log"]

Kind = Literal["losses", "validation", "lr", "other"]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One logged number over the steps of the run."""

    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """All curves of a run.

    Attributes:
        curves: by key; those of a group of the log as ``losses/dice``.
        phases: name and first logged step of each phase, in order.
    """

    curves: Mapping[str, Curve] = field(default_factory=dict)
    phases: tuple[tuple[str, float], ...] = ()

    def of_kind(self, kind: Kind) -> dict[str, Curve]:
        """Return the curves of a group of the log by their names in it, or those outside of any group."""
        if kind == "other":
            return {key: curve for key, curve in self.curves.items() if "/" not in key}
        own = (key for key in self.curves if key.startswith(f"{kind}/"))
        return {key.removeprefix(f"{kind}/"): self.curves[key] for key in own}


def read_log(path: Path) -> TrainingLog:
    """Read a log. A line that was cut off by a crash does not count; of a step done twice the later one does.

    Raises: DataError if there is no such file.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; training writes it into the run folder.") from None
    found: dict[str, dict[float, float]] = {}
    phases: dict[str, float] = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        step = entry.pop("step")
        phases.setdefault(entry.pop("phase"), step)
        for key, value in _numbers(entry):
            found.setdefault(key, {})[step] = value
    curves = {
        key: Curve(steps=tuple(sorted(points)), values=tuple(points[step] for step in sorted(points)))
        for key, points in found.items()
    }
    return TrainingLog(curves=curves, phases=tuple(phases.items()))


def _numbers(entry: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in entry.items():
        group = (
            {f"{key}/{name}": one for name, one in value.items()}
            if isinstance(value, Mapping)
            else {key: value}
        )
        yield from ((name, one) for name, one in group.items() if math.isfinite(one))
