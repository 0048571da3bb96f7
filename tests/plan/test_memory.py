from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from medplan.errors import MethodError
from medplan.method import Batch, Phase, Progress, Update
from medplan.methods.supervised import METHOD
from medplan.plan.memory import measure
from medplan.plan.overrides import Overrides
from medplan.plan.patches import fit
from medplan.plan.planner import decide
from medplan.plan.schema import Plan

Make = Callable[..., Any]


def plan(facts: Any, method: Any, batch_size: int = 2) -> Plan:
    return decide([facts], "toy", method, Overrides(patch_size=(16, 16, 16), batch_size=batch_size), 2**34)[0]


def test_a_convolution_takes_what_can_be_counted_by_hand(fingerprint: Make, toy: Make) -> None:
    found = measure(toy(), plan(fingerprint(), toy()))
    weights = 8 * 27 + 8
    voxels = 2 * 16**3
    # Parameters, gradients, two moments of Adam (and its counter per parameter), in float32.
    assert found.fixed == pytest.approx(4 * 4 * weights, abs=16)
    # The input and the weights in bfloat16, and the result of the rectifier (8 channels, bfloat16).
    assert found.kept == 2 * voxels + 2 * 8 * 27 + 2 * 8 * voxels
    assert found.largest == 2 * 8 * voxels
    assert found.flops == 3 * 2 * voxels * 8 * 27
    expected = 1.1 * (found.fixed + found.kept + 2 * found.largest) + 512 * 2**20
    assert found.total == pytest.approx(expected, abs=1)


def test_memory_grows_linearly_with_the_batch(fingerprint: Make) -> None:
    made = plan(fingerprint(), METHOD)
    kept = [
        measure(METHOD, replace(made, training=replace(made.training, batch_size=size))).kept
        for size in (1, 2, 3)
    ]
    assert kept[2] - kept[1] == kept[1] - kept[0] > 0


def test_the_batch_fits_also_where_memory_grows_with_its_square(fingerprint: Make, toy: Make) -> None:
    def quadratic(each: Plan) -> Any:
        return SimpleNamespace(total=each.training.batch_size**2)

    found = fit(
        (plan(fingerprint(), toy()),), quadratic, target_bytes=100, dataset_voxels=10**9, batch_size=None
    )
    assert found.plan.training.batch_size == 10 and found.footprint.total == 100


@pytest.mark.parametrize(("target", "expected"), [(4, 2), (3, 1), (0, 1)])
def test_of_a_patch_that_is_given_one_is_taken_where_two_do_not_fit(
    fingerprint: Make, toy: Make, target: int, expected: int
) -> None:
    found = fit(
        (plan(fingerprint(), toy()),),
        lambda each: SimpleNamespace(total=2 * each.training.batch_size),  # type: ignore[arg-type, return-value]
        target_bytes=target,
        dataset_voxels=10**9,
        batch_size=None,
        fixed_patch=True,
    )
    assert found.plan.training.batch_size == expected


def test_what_is_counted_without_values_is_what_autograd_keeps_with_values(fingerprint: Make) -> None:
    made = plan(fingerprint(), METHOD)
    method = METHOD(made)
    own = {p.data_ptr() for p in method.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch = {
        "image": torch.randn(2, 1, *made.patch_size),
        "label": torch.ones(2, *made.patch_size, dtype=torch.int16),
    }
    update: Any = type("Nothing", (), {"minimise": lambda self, loss, name="main": None})()
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False),
    ):
        method.training_step(batch, update, Progress(phase="train", step=0, num_steps=1))
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert measure(METHOD, made).kept == pytest.approx(real, rel=0.1)


def test_a_graph_that_was_freed_no_longer_counts(fingerprint: Make, toy: Make) -> None:
    class Twice(toy()):  # type: ignore[misc]
        def training_step(self, batch: Batch, update: Update, at: Progress) -> dict[str, Tensor]:
            super().training_step(batch, update, at)
            return super().training_step(batch, update, at)  # type: ignore[no-any-return]

    once = measure(toy(), plan(fingerprint(), toy()))
    assert measure(Twice, plan(fingerprint(), Twice)).kept == pytest.approx(once.kept, rel=0.01)


def test_frozen_parameters_have_no_gradient_and_no_state(fingerprint: Make, toy: Make) -> None:
    class Frozen(toy()):  # type: ignore[misc]
        def __init__(self, plan: Plan) -> None:
            super().__init__(plan)
            self.extra = torch.nn.Linear(100, 100, bias=False)

        def optimizers(self, phase: str) -> dict[str, torch.optim.Optimizer]:
            return {"main": torch.optim.Adam(self.conv.parameters())}

    more = (
        measure(Frozen, plan(fingerprint(), Frozen)).fixed - measure(toy(), plan(fingerprint(), toy())).fixed
    )
    assert more == 4 * 100 * 100


def test_a_step_that_looks_at_values_is_told_what_to_override(fingerprint: Make, toy: Make) -> None:
    class Looking(toy()):  # type: ignore[misc]
        def training_step(self, batch: Batch, update: Update, at: Progress) -> dict[str, Tensor]:
            return {"loss": torch.tensor(batch["image"].sum().item())}

    with pytest.raises(MethodError, match="override 'footprint_step'"):
        plan(fingerprint(), Looking)

    class Told(Looking):
        def footprint_step(self, batch: Batch, update: Update, at: Progress) -> None:
            update.minimise(self.conv(batch["image"]).sum())

    assert measure(Told, plan(fingerprint(), Told)).total > 0


def test_phases_without_steps_take_nothing(fingerprint: Make, toy: Make) -> None:
    class Phased(toy()):  # type: ignore[misc]
        def phases(self) -> tuple[Phase, ...]:
            (last,) = super().phases()
            return (replace(last, name="idle", num_steps=0), last)

        def optimizers(self, phase: str) -> dict[str, torch.optim.Optimizer]:
            assert phase != "idle"
            return super().optimizers(phase)  # type: ignore[no-any-return]

    planned = plan(fingerprint(), Phased)
    assert measure(Phased, planned) == measure(toy(), planned)
    idle = replace(planned, training=replace(planned.training, iterations=0))
    weights = 8 * 27 + 8
    assert measure(Phased, idle).fixed == 4 * weights and measure(Phased, idle).kept == 0
