"""One run: where it stands, what it saves, and how it starts again."""

import logging
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from medplan import checkpoint
from medplan.errors import CheckpointError
from medplan.machine import free_disk
from medplan.method import Method, Phase
from medplan.plan.schema import Fold, Plan
from medplan.randomness import fold_in
from medplan.records import encode, write_json
from medplan.runtime import Runtime
from medplan.train.log import RunLog
from medplan.train.run_folder import Record, Status, read_record, versions, write_record
from medplan.train.update import LossScale

__all__ = ["Position", "Run", "Validate"]

logger = logging.getLogger(__name__)

Validate = Callable[[Method], Mapping[str, float]]

MAY_CHANGE = ("iterations", "validate_every", "checkpoint_every", "patience")
"""Keys of ``training`` in a plan that may change between two starts of a run."""


@dataclass
class Position:
    """How far a run is; all of it is in the checkpoint.

    Attributes:
        phase, step: finished steps within a phase; the phase is over when they are all of it.
        total: finished steps over all phases.
        score: of the last validation.
        best_score, best_total: of the best validation, and the steps finished then.
        stale: validations since the best one.
        is_over: nothing is left to do: all phases are over, or early stopping ended the run.
    """

    phase: int = 0
    step: int = 0
    total: int = 0
    score: float | None = None
    best_score: float | None = None
    best_total: int | None = None
    stale: int = 0
    is_over: bool = False


class Run:
    """A run folder together with what is in memory of it.

    Attributes:
        at: the position, which the loop advances.
        optimizers, scale: of the current phase, in the state they are in.
        iterations: steps over all phases, finished ones included.
    """

    def __init__(
        self,
        method: Method,
        plan: Plan,
        folder: Path,
        *,
        fold: Fold,
        runtime: Runtime,
        validate: Validate | None,
        log: RunLog,
    ) -> None:
        self.method, self.plan, self.folder, self.fold = method.to(runtime.device), plan, folder, fold
        self.runtime, self.log = runtime, log
        self._validate = validate
        self.phases = tuple(method.phases())
        self.at = Position()
        self.optimizers: dict[str, Optimizer] = {}
        self.scale = LossScale()
        self._seconds_before, self._started = 0.0, time.monotonic()

    @property
    def phase(self) -> Phase:
        return self.phases[self.at.phase]

    @property
    def iterations(self) -> int:
        left = [self.phase.num_steps - self.at.step]
        left += [phase.num_steps for phase in self.phases[self.at.phase + 1 :]]
        return self.at.total + sum(max(0, steps) for steps in left)

    def start(self, *, resume: bool) -> None:
        """Continue from ``last.pt`` if there is one and `resume` says so; else start from nothing.

        Raises: CheckpointError if the checkpoint belongs to another plan or fold, or some ranks have none.
        """
        path = self.folder / "last.pt"
        if resume and path.exists():
            # To the host: Adam keeps its counters where they are loaded to, and reads them in every step.
            self._continue(checkpoint.load(path), path)
        else:
            self._enter_phase(0)
            (self.folder / "best.pt").unlink(missing_ok=True)
        if len(set(self.runtime.gather(self.at.total))) > 1:
            raise CheckpointError(
                f"{path}: not all processes see this file; put the workspace on a disk that they share."
            )
        self.log.rewind(self.at.total)
        self._share_everything()
        if self.runtime.is_main:
            self._check_disk()
            write_json(self.plan, self.folder / "plan.json")
            self.write_record("running")

    def advance(self) -> bool:
        """Move on from a phase that is over; False if no phase is left or the run has ended early."""
        while not self.at.is_over and self.at.step >= self.phase.num_steps:
            if self.at.phase + 1 == len(self.phases):
                self.at.is_over = True
            else:
                if self.phase.num_steps > 0:  # to start another run from (``--encoder-weights``)
                    self._save_weights(self.phase.name, score=self.at.score)
                self._enter_phase(self.at.phase + 1)
        return not self.at.is_over

    def share_buffers(self) -> None:
        """Give all ranks the buffers of the first, so that running statistics and queues do not drift
        apart."""
        if self.runtime.world > 1:
            self.runtime.broadcast(list(self.method.buffers()))

    def validate_if_due(self) -> None:
        """Validate every so many steps and at the end of a phase; keep the best weights; note early
        stopping."""
        at, training = self.at, self.plan.training
        is_due = at.total % training.validate_every == 0 or at.step == self.phase.num_steps
        if self._validate is None or not self.phase.validate or not is_due:
            return
        torch.manual_seed(fold_in(training.seed, "validate", at.total))
        self.method.eval()
        with torch.no_grad():
            found = dict(self._validate(self.method))
        self.method.train()
        at.score = float(found["score"])
        self.log.write({"step": at.total, "phase": self.phase.name, "validation": found})
        is_better = at.best_score is None or at.score > at.best_score
        if is_better:
            at.best_score, at.best_total, at.stale = at.score, at.total, 0
            self._save_weights("best", score=self.at.best_score)
        else:
            at.stale += 1
        logger.info(
            "step %d: validation Dice %.4f%s", at.total, at.score, " (best so far)" if is_better else ""
        )
        if training.patience is not None and at.stale >= training.patience:
            logger.info("Stopping early: %d validations without improvement.", at.stale)
            at.is_over = True
        self._plot()

    def save(self) -> None:
        """Write ``last.pt``; it holds everything that the next step depends on."""
        if not self.runtime.is_main:
            return
        states = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        training = {"position": vars(self.at).copy(), "phase": self.phase.name, "optimizers": states}
        training["scale"] = vars(self.scale).copy()
        checkpoint.save_run_state(
            self.folder / "last.pt",
            self.method,
            self.plan,
            fold=self.fold,
            step=self.at.total,
            score=self.at.score,
            training=training,
        )
        self.write_record("running")

    def finish(self, status: Status) -> None:
        """Write the record, and the weights as ``best.pt`` where no validation has chosen any."""
        if self.at.best_score is None:
            self._save_weights("best", score=self.at.best_score)
        if self.at.total == 0:
            self.save()
        self.write_record(status)

    def write_record(self, status: Status, *, reason: str = "") -> None:
        """Write ``run.json``."""
        if not self.runtime.is_main:
            return
        record = Record(
            status=status,
            fold=self.fold,
            step=self.at.total,
            iterations=self.iterations,
            seconds=round(self._seconds_before + time.monotonic() - self._started, 3),
            best_score=self.at.best_score,
            best_step=self.at.best_total,
            device=self.runtime.describe(),
            reason=reason,
            versions=versions(),
            command=shlex.join(sys.argv),
        )
        write_record(self.folder, record)

    def _continue(self, state: Mapping[str, Any], path: Path) -> None:
        former = checkpoint.plan_of(state, path=path)
        if "training" not in state:
            raise CheckpointError(f"{path}: holds weights only; training cannot go on from it.")
        if state["fold"] != self.fold:
            raise CheckpointError(
                f"{path}: was trained on fold {state['fold']}, not {self.fold}; choose another --run."
            )
        changed = _differences(encode(former), encode(self.plan))
        if changed:
            named = "; ".join(changed[:4]) + (f"; and {len(changed) - 4} more" if len(changed) > 4 else "")
            raise CheckpointError(
                f"{path}: this run was started with another plan ({named}). Choose another --run, or begin "
                "this one anew with --restart."
            )
        checkpoint.restore(self.method, state["weights"], where=str(path))
        saved = state["training"]
        self.at = Position(**saved["position"])
        grows = self.plan.training.iterations > former.training.iterations
        if self.at.is_over and grows:
            self.at.is_over, self.at.stale = False, 0
            logger.info(
                "The run was finished after %d steps and is prolonged: its last phase goes on, with the "
                "schedule of the new length.",
                self.at.total,
            )
        elif self.at.is_over:
            logger.info(
                "The run is finished already (%d steps); more --iters would prolong it.", self.at.total
            )
        else:
            logger.info("Going on after step %d.", self.at.total)
        if self.at.phase >= len(self.phases) or self.phase.name != saved["phase"]:
            raise CheckpointError(f"{path}: the method has no phase '{saved['phase']}' any more.")
        self.optimizers = self.method.begin(self.phase.name)
        if self.optimizers.keys() != saved["optimizers"].keys():
            raise CheckpointError(f"{path}: holds the optimisers {sorted(saved['optimizers'])}.")
        for name, optimizer in self.optimizers.items():
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved["optimizers"][name])
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                # The base rate, which the schedule multiplies; the state holds the rate of the last step.
                group["lr"] = rate
        self.scale = LossScale(**saved.get("scale", {}))
        record = read_record(self.folder)
        self._seconds_before = record.seconds if record else 0.0

    def _enter_phase(self, number: int) -> None:
        self.at.phase, self.at.step = number, 0
        torch.manual_seed(fold_in(self.plan.training.seed, "begin", self.phase.name))
        self.optimizers, self.scale = self.method.begin(self.phase.name), LossScale()

    def _share_everything(self) -> None:
        if self.runtime.world > 1:
            self.runtime.broadcast([*(p.data for p in self.method.parameters()), *self.method.buffers()])

    def _save_weights(self, name: str, *, score: float | None) -> None:
        if self.runtime.is_main:
            checkpoint.save_weights(
                self.folder / f"{name}.pt",
                self.method,
                self.plan,
                fold=self.fold,
                step=self.at.total,
                score=score,
            )

    def _plot(self) -> None:
        if self.runtime.is_main:
            from medplan.evaluate import plots

            try:
                plots.progress(self.folder / "log.jsonl", self.folder / "progress.png")
            except ImportError as error:
                logger.info("There will be no progress.png: %s.", error)

    def _check_disk(self) -> None:
        weights = sum(tensor.numel() * tensor.element_size() for tensor in self.method.state_dict().values())
        # last.pt with two moments per weight, best.pt, and the temporary file beside them.
        needed, free = 7 * weights, free_disk(self.folder)
        if free < needed:
            raise CheckpointError(
                f"{self.folder}: the checkpoints need about {needed / 2**20:.0f} MiB, but only "
                f"{free / 2**20:.0f} MiB are free on this disk."
            )


def _differences(former: Any, current: Any, key: str = "") -> list[str]:
    """Name the keys of two encoded plans that differ, as far as training depends on them."""
    if isinstance(former, dict) and isinstance(current, dict):
        left_out = {"": ("reasons", "predicted_gpu_bytes", "score"), "training": MAY_CHANGE}.get(key, ())
        found = []
        for name in sorted({*former, *current} - {*left_out}):
            inner = f"{key}.{name}" if key else name
            found += _differences(former.get(name), current.get(name), inner)
        return found
    if isinstance(former, list) and isinstance(current, list) and len(former) == len(current) <= 8:
        pairs = enumerate(zip(former, current, strict=True))
        return [one for number, (old, new) in pairs for one in _differences(old, new, f"{key}.{number}")]
    return [] if former == current else [f"'{key}' was {_short(former)}, is {_short(current)}"]


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 3:
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
