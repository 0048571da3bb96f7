"""The training loop, for every method.

It knows phases, steps, checkpoints and validation; it does not know what a method computes.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from medplan.errors import MethodError
from medplan.machine import tune_allocator
from medplan.method import Batch, Method, Phase, Progress
from medplan.plan.schema import Fold, Plan
from medplan.randomness import fold_in
from medplan.records import write_json
from medplan.runtime import Runtime
from medplan.samples.cases import CaseStore
from medplan.train.display import Display
from medplan.train.loader import batches, default_workers, to_device
from medplan.train.log import Means, RunLog, open_trackers
from medplan.train.run import Run, Validate
from medplan.train.run_folder import Signals, Status, hold
from medplan.train.update import GradientUpdate

__all__ = ["take_step", "train"]

logger = logging.getLogger(__name__)


def train(
    method: Method,
    plan: Plan,
    store: CaseStore,
    folder: Path,
    *,
    fold: Fold,
    runtime: Runtime,
    validate: Validate | None = None,
    workers: int | None = None,
    resume: bool = True,
    compile: bool = False,
    track: Sequence[str] = (),
) -> Path:
    """Train a method to the end of its phases, or from where the folder's ``last.pt`` stands.

    A run that was interrupted at any step goes on as if it had not been. A finished run goes on if the plan
    has more iterations than before: its last phase is prolonged, and the schedule is that of the new length
    from there on. Any other change of the plan is refused.

    Args:
        store: the cases of `fold`.
        folder: of the run; gets last.pt, best.pt, plan.json, run.json, log.jsonl and progress.png. A file
            named STOP in it ends training after the current step, saved.
        validate: returns ``score`` and whatever else is to be logged; see `medplan.train.validate`. Without
            it, ``best.pt`` holds the last weights.
        workers: loader processes per rank; None chooses by device.
        compile: compile the method's networks with `torch.compile`, in place.
        track: experiment trackers, see `medplan.train.log.open_trackers`.

    Returns: the path of ``best.pt``.
    Raises: MedplanError; SystemExit with 128 + the signal's number after SIGINT or SIGTERM, the step being
        saved.
    """
    workers = default_workers(runtime, plan) if workers is None else workers
    if runtime.device.type == "cpu":
        tune_allocator()
    if not runtime.is_main:
        # What all ranks know is said once.
        logging.getLogger("medplan").setLevel(logging.WARNING)
    with ExitStack() as stack:
        trackers = []
        if runtime.is_main:
            stack.enter_context(hold(folder))
            trackers = open_trackers(track, folder)
        log = RunLog(folder / "log.jsonl" if runtime.is_main else None, trackers=trackers)
        stack.callback(log.close)
        run = Run(method, plan, folder, fold=fold, runtime=runtime, validate=validate, log=log)
        run.start(resume=resume)
        if compile:
            _compile(method)
        signals = stack.enter_context(Signals())
        stop: Status | None = None
        try:
            while stop is None and run.advance():
                stop = _train_phase(run, store, workers=workers, signals=signals)
        except BaseException as error:
            run.write_record("failed", reason=f"{type(error).__name__}: {error}".splitlines()[0])
            raise
        run.finish(stop or "finished")
        if runtime.is_main:
            for name, heatmap in method.heatmaps().items():
                write_json(heatmap, folder / "heatmaps" / f"{name}.json")
        if stop == "interrupted":
            logger.warning(
                "Interrupted after step %d; everything is saved. The same command goes on from here.",
                run.at.total,
            )
            raise SystemExit(128 + signals.received)
    return folder / "best.pt"


def _compile(module: nn.Module) -> None:
    """Compile the outermost modules that can be called; one that has no ``forward`` only holds others."""
    for part in module.children():
        if type(part).forward is nn.Module.forward:
            _compile(part)
        else:
            part.compile()


def _train_phase(run: Run, store: CaseStore, *, workers: int, signals: Signals) -> Status | None:
    """Train the current phase from the current step; return why it ended before its time, if it did."""
    runtime, at, phase, training = run.runtime, run.at, run.phase, run.plan.training
    update = GradientUpdate(run.optimizers, phase=phase, runtime=runtime, scale=run.scale)
    pace = _Pace(at.total)
    means, display = Means(), Display(run.iterations, first=at.total, shows=runtime.is_main)
    log_every = max(1, min(50, run.iterations // 100))
    numbered = batches(store, phase, seed=training.seed, runtime=runtime, workers=workers, first_step=at.step)
    run.method.train()
    stop: Status | None = None
    for batch in pace.time(numbered):
        progress = Progress(phase=phase.name, step=at.step, num_steps=phase.num_steps)
        torch.manual_seed(fold_in(training.seed, phase.name, at.step, runtime.rank))
        update.begin(progress, batch["case"])
        logged = take_step(run.method, batch, phase, update, progress, runtime)
        if update.left_out:  # what overflowed is not to be averaged
            logged = {name: value for name, value in logged.items() if bool(value.isfinite())}
        means.add(logged)
        run.share_buffers()
        at.step, at.total = at.step + 1, at.total + 1
        is_last = at.step == phase.num_steps
        display.step(at.total)
        if at.total % log_every == 0 or is_last:
            losses = means.take()
            display.losses(losses)
            line = {"step": at.total, "phase": phase.name, "losses": losses, "lr": update.lr}
            run.log.write({**line, **pace.take(at.total), "peak_bytes": runtime.peak_bytes()})
        run.validate_if_due()
        stop = _asked_to_stop(run.folder, signals, runtime)
        if stop or is_last or at.is_over or at.total % training.checkpoint_every == 0:
            if is_last and at.phase + 1 == len(run.phases):
                at.is_over = True
            run.save()
        if stop or at.is_over:
            break
    numbered.close()
    display.close()
    return stop


def take_step(
    method: Method, batch: Batch, phase: Phase, update: GradientUpdate, at: Progress, runtime: Runtime
) -> dict[str, Tensor]:
    """Bring a batch to the device, augment it and let the method learn from it; return what it logs.

    Raises: MethodError if the memory of the device does not suffice.
    """
    try:
        batch = to_device(batch, runtime.device)
        if phase.augment is not None:
            with torch.no_grad():
                batch = phase.augment(batch, torch.Generator().manual_seed(torch.initial_seed()))
        with runtime.autocast():
            return method.training_step(batch, update, at)
    except torch.OutOfMemoryError as error:
        raise MethodError(
            f"A step of phase '{at.phase}' with {phase.batch_size} samples does not fit into "
            f"{runtime.memory()} (step {at.step}). Plan again with a smaller --gpu-memory, or give a "
            "smaller --batch-size or --patch-size."
        ) from error


def _asked_to_stop(folder: Path, signals: Signals, runtime: Runtime) -> Status | None:
    """Return how a signal or a file named STOP asks to end; all ranks return the same."""
    has_file = runtime.is_main and (folder / "STOP").exists()
    code = runtime.largest(signals.received or (1000 if has_file else 0))
    if code == 1000:
        logger.info("Stopping, as the file STOP in %s asks; everything is saved.", folder)
        if runtime.is_main:
            (folder / "STOP").unlink()
        return "stopped"
    signals.received = code
    return "interrupted" if code else None


class _Pace:
    """Seconds per step, and how much of them the loader took, since the last line of the log."""

    def __init__(self, total: int) -> None:
        self._since, self._waited, self._total = time.monotonic(), 0.0, total

    def time(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def take(self, total: int) -> dict[str, float]:
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        found = {"seconds": seconds / (total - self._total), "loader_wait": self._waited / seconds}
        self._since, self._waited, self._total = now, 0.0, total
        return {name: round(value, 4) for name, value in found.items()}
