"""How many iterations fit into the time that a user has."""

import logging
import time
from dataclasses import replace

import torch

from medplan.errors import PlanError
from medplan.method import Method, Phase, Progress
from medplan.plan.schema import Plan
from medplan.randomness import fold_in
from medplan.runtime import Runtime
from medplan.samples.cases import CaseStore
from medplan.train.loader import batches, default_workers
from medplan.train.loop import take_step
from medplan.train.update import GradientUpdate

__all__ = ["lasting"]

logger = logging.getLogger(__name__)

WARM_UP_STEPS = 3
FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where in a phase steps are timed: what a step does may change in its course."""
MOST_STEPS = 20
"""At each of them, where steps are quick: more than what loaders have read ahead."""


def lasting(
    minutes: float,
    plan: Plan,
    method: Method,
    store: CaseStore,
    *,
    runtime: Runtime,
    workers: int | None = None,
) -> Plan:
    """Return the plan with as many iterations as take so many minutes on this machine.

    Validation comes on top.

    Args:
        method: takes a few steps of each phase, which is part of the minutes; of no use afterwards.

    Raises: PlanError if the time is too short to learn anything.
    """
    start = time.monotonic()
    workers = default_workers(runtime, plan) if workers is None else workers
    method = method.to(runtime.device)
    phases = [phase for phase in method.phases() if phase.num_steps]
    costs = {
        phase.name: _seconds_per_step(
            method, phase, store, minutes=minutes, plan=plan, runtime=runtime, workers=workers
        )
        for phase in phases
    }
    seconds = minutes * 60 - (time.monotonic() - start)
    iterations = int(seconds / _mean_cost(type(method), plan, costs))
    if iterations < 10 * len(phases):
        raise _too_slow(minutes, max(costs.values()), plan)
    # Phases of a fixed length weigh more in a short training: the mean is that of the length found first.
    mean = _mean_cost(type(method), _with_iterations(plan, iterations), costs)
    iterations = -runtime.largest(-max(1, int(seconds / mean)))
    logger.info("%d iterations fit into %g minutes, at %.2g s each.", iterations, minutes, mean)
    return _with_iterations(plan, iterations)


def _too_slow(minutes: float, step: float, plan: Plan) -> PlanError:
    return PlanError(
        f"--minutes {minutes:g}: a step takes {step:.3g} s here, so that hardly anything would be learnt; "
        "give more minutes, or plan smaller steps, for instance with 'medplan plan -d "
        f"{plan.name} -m {plan.method} --gpu-memory 1', or less."
    )


def _seconds_per_step(
    method: Method,
    phase: Phase,
    store: CaseStore,
    *,
    minutes: float,
    plan: Plan,
    runtime: Runtime,
    workers: int,
) -> float:
    """Return the mean over the course of a phase, loading included; give up where it is hopelessly long."""
    seed = plan.training.seed
    update = GradientUpdate(method.begin(phase.name), phase=phase, runtime=runtime)
    most = replace(phase, num_steps=WARM_UP_STEPS + len(FRACTIONS) * MOST_STEPS)
    numbered = batches(store, most, seed=seed, runtime=runtime, workers=workers)
    method.train()

    def step(fraction: float) -> None:
        batch = next(numbered)
        number = int(fraction * phase.num_steps)
        at = Progress(phase=phase.name, step=number, num_steps=phase.num_steps)
        torch.manual_seed(fold_in(seed, "budget", phase.name, number, runtime.rank))
        update.begin(at, batch["case"])
        take_step(method, batch, phase, update, at, runtime)

    start = 0.0
    for number in range(WARM_UP_STEPS):
        start = time.monotonic()
        step(FRACTIONS[0])
        runtime.wait()
        taken = time.monotonic() - start
        # The first step also starts workers and chooses algorithms, and says less.
        if runtime.largest(int(taken * (10 if number else 1) > minutes * 60)):
            numbered.close()
            raise _too_slow(minutes, taken, plan)
    each = runtime.largest(max(1, min(MOST_STEPS, int(1 / max(time.monotonic() - start, 1e-3)))))
    start = time.monotonic()
    for fraction in FRACTIONS:
        for _ in range(each):
            step(fraction)
    runtime.wait()
    seconds = time.monotonic() - start
    numbered.close()
    return seconds / (each * len(FRACTIONS))


def _mean_cost(method_class: type[Method], plan: Plan, costs: dict[str, float]) -> float:
    """Return the mean seconds of a step over all phases of the plan."""
    with torch.device("meta"):
        steps = {phase.name: phase.num_steps for phase in method_class(plan).phases()}
    return sum(costs.get(name, 0.0) * number for name, number in steps.items()) / sum(steps.values())


def _with_iterations(plan: Plan, iterations: int) -> Plan:
    return replace(plan, training=plan.training.of_length(iterations))
