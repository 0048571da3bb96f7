"""As many iterations as the minutes allow, on a clock that only steps move."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from medplan.errors import PlanError
from medplan.method import Batch, Progress, Update
from medplan.runtime import Runtime
from medplan.train import budget
from tests.train.toy import Toy, toy_plan, toy_store

CPU = Runtime(device=torch.device("cpu"))


class Clocked(Toy):
    """A step of the first phase takes 2 s, one of the second 0.5 s, and twice that in its second half."""

    now: ClassVar[float] = 0.0

    @classmethod
    def seconds(cls, at: Progress) -> float:
        if at.phase == "first":
            return 2.0
        return 0.5 if at.fraction < 0.5 else 1.0

    def training_step(self, batch: Batch, update: Update, at: Progress) -> dict[str, Tensor]:
        Clocked.now += self.seconds(at)
        return super().training_step(batch, update, at)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    Clocked.now = 0.0
    monkeypatch.setattr(budget.time, "monotonic", lambda: Clocked.now)


@pytest.mark.parametrize("minutes", [3.0, 30.0])
def test_timing_and_training_together_take_the_minutes(minutes: float) -> None:
    plan = toy_plan(iterations=900)
    found = budget.lasting(minutes, plan, Clocked(plan), toy_store(plan), runtime=CPU, workers=0)
    training = sum(
        Clocked.seconds(Progress(phase=phase.name, step=step, num_steps=phase.num_steps))
        for phase in Clocked(found).phases()
        for step in range(phase.num_steps)
    )
    assert Clocked.now > 0
    # Two of the five timed steps lie in the first half of a phase, and one in its middle.
    assert (Clocked.now + training) / (60 * minutes) == pytest.approx(1.0, abs=0.04)


@pytest.mark.parametrize(("minutes", "validations"), [(30.0, 5), (300.0, 14)])
def test_it_is_validated_every_1000_steps_but_at_least_five_times(minutes: float, validations: int) -> None:
    plan = toy_plan(iterations=900)
    found = budget.lasting(minutes, plan, Clocked(plan), toy_store(plan), runtime=CPU, workers=0).training
    assert found.iterations // found.validate_every == validations


def test_too_little_time_is_refused() -> None:
    plan = toy_plan(iterations=900)
    with pytest.raises(PlanError, match="a step takes 2 s here"):
        budget.lasting(0.5, plan, Clocked(plan), toy_store(plan), runtime=CPU, workers=0)


def test_hopelessly_slow_steps_are_not_timed_to_the_end() -> None:
    plan = toy_plan(iterations=900)
    for minutes, steps in ((0.25, 2), (0.03, 1)):
        Clocked.now = 0.0
        with pytest.raises(PlanError, match="a step takes 2 s here"):
            budget.lasting(minutes, plan, Clocked(plan), toy_store(plan), runtime=CPU, workers=0)
        assert Clocked.now == 2.0 * steps


def test_what_a_phase_does_not_train_is_frozen_while_it_is_timed() -> None:
    frozen: dict[str, int] = {}

    class Watched(Clocked):
        def training_step(self, batch: Batch, update: Update, at: Progress) -> dict[str, Tensor]:
            frozen[at.phase] = sum(not parameter.requires_grad for parameter in self.parameters())
            return super().training_step(batch, update, at)

    plan = toy_plan(iterations=900)
    method = Watched(plan)
    budget.lasting(30.0, plan, method, toy_store(plan), runtime=CPU, workers=0)
    for phase, number in frozen.items():
        groups = [group for each in method.optimizers(phase).values() for group in each.param_groups]
        assert number == len(list(method.parameters())) - sum(len(group["params"]) for group in groups)
    assert any(frozen.values())
