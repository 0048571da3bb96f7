"""What a run writes down while it trains: ``log.jsonl``, and the trackers that the user asks for.

One line of ``log.jsonl`` is either ``{"step", "phase", "losses", "lr", "seconds", "loader_wait",
"peak_bytes"}``, with losses averaged since the line before and the loader's share of the time, or ``{"step",
"phase", "validation"}`` with the mean Dice by class and their mean as ``score``. `step` counts finished steps
over all phases.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from medplan.errors import UsageError, did_you_mean
from medplan.records import write_text

__all__ = ["Means", "RunLog", "open_trackers"]

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """An experiment tracker."""

    def write(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Means:
    """Sums of logged tensors that stay on the device until they are asked for, so that logging waits for
    nothing."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            number = torch.as_tensor(value).detach().float()
            self._sums[name] = self._sums[name] + number if name in self._sums else number
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means since the last call, and start anew."""
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


class RunLog:
    """Appends to ``log.jsonl`` and to trackers. A rank that is not the first gets one without a path."""

    def __init__(self, path: Path | None, *, trackers: Sequence[Tracker] = ()) -> None:
        self._path, self._trackers = path, tuple(trackers)

    def rewind(self, step: int) -> None:
        """Drop lines of steps after `step`, which a resumed run is about to do again, and half a last
        line."""
        if self._path is None or not self._path.exists():
            return
        kept = [line for line in self._path.read_text().splitlines() if _step_of(line) <= step]
        write_text("".join(f"{line}\n" for line in kept), self._path)

    def write(self, line: Mapping[str, Any]) -> None:
        if self._path is None:
            return
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for tracker in self._trackers:
            tracker.write(_flat(line), int(line["step"]))

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def open_trackers(names: Sequence[str], folder: Path) -> list[Tracker]:
    """Open trackers by name: ``tensorboard``, ``mlflow``, ``wandb``.

    Raises: UsageError if a name is unknown or its package is not installed.
    """
    known: dict[str, Callable[[Path], Tracker]] = {
        "tensorboard": _TensorBoard,
        "mlflow": _MLflow,
        "wandb": _WandB,
    }
    opened: list[Tracker] = []
    for name in names:
        if name not in known:
            raise UsageError(
                f"--track {name}: expected one of {', '.join(known)}{did_you_mean(name, known)}."
            )
        try:
            opened.append(known[name](folder))
        except ImportError as error:
            extra = "'medplan[track]'" if name == "tensorboard" else name
            raise UsageError(
                f"--track {name}: the package is not installed ({error}); pip install {extra}."
            ) from None
    return opened


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    def __init__(self, folder: Path) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.start_run(run_name=folder.name)

    def write(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class _WandB:
    def __init__(self, folder: Path) -> None:
        import wandb

        self._run = wandb.init(project="medplan", name=folder.name, dir=str(folder), resume="allow")

    def write(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _flat(line: Mapping[str, Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, Mapping):
            values.update({f"{key}/{name}": float(item) for name, item in value.items()})
        elif isinstance(value, (int, float)) and key != "step":
            values[key] = float(value)
    return values


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
