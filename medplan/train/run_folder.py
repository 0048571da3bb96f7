"""The folder of one run: its record, its lock, and the ways to ask it to stop."""

import importlib.metadata
import os
import platform
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

import torch

from medplan.errors import UsageError
from medplan.locks import try_lock
from medplan.plan.schema import Fold
from medplan.records import read_json, write_json

__all__ = ["Record", "Signals", "Status", "hold", "read_record", "versions", "write_record"]

Status = Literal["running", "finished", "stopped", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """``run.json``: what became of a run.

    Attributes:
        status: ``stopped`` by a STOP file; ``interrupted`` by a signal; ``running`` also after a crash of the
            machine.
        step, iterations: finished steps, and steps of the plan, over all phases.
        seconds: spent training and validating, over all starts.
        best_score, best_step: of the validation that gave ``best.pt``.
        command: the last command that trained it.
    """

    status: Status
    fold: Fold
    step: int
    iterations: int
    seconds: float
    best_score: float | None = None
    best_step: int | None = None
    device: str = ""
    reason: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""


def read_record(folder: Path) -> Record | None:
    """Return the record of a run folder, or None if it has none."""
    path = folder / "run.json"
    return read_json(Record, path) if path.exists() else None


def write_record(folder: Path, record: Record) -> Path:
    """Write the record of a run folder."""
    return write_json(record, folder / "run.json")


def versions() -> dict[str, str]:
    """Return the versions that decide about results."""
    try:
        own = importlib.metadata.version("medplan")
    except importlib.metadata.PackageNotFoundError:
        own = "unknown"
    return {"medplan": own, "torch": torch.__version__, "python": platform.python_version()}


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other processes from training in the same folder.

    Raises: UsageError naming the process that does. The lock of a process that was killed does not count.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with path.open("a+") as file:
        if not try_lock(file.fileno()):
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise UsageError(
                f"{folder}: {owner} is training in this folder; wait for it, or choose another --run."
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


class Signals:
    """While it is open, SIGINT and SIGTERM are noted instead of ending the process; a second SIGINT ends
    it."""

    def __init__(self) -> None:
        self.received = 0
        self._former: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
