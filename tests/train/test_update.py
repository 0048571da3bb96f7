from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from medplan.errors import MethodError
from medplan.learning.lamb import Lamb
from medplan.method import Phase, Progress, poly
from medplan.runtime import Runtime
from medplan.train.update import GradientUpdate, LossScale
from tests.train.toy import Overflow

CPU = Runtime(device=torch.device("cpu"))
PHASE = Phase(name="p", num_steps=10, batch_size=1, sample=lambda store, rng: {})


def two_networks() -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return nn.Linear(3, 3), nn.Linear(3, 1)


def test_a_loss_moves_the_parameters_of_one_optimiser_only() -> None:
    first, second = two_networks()
    update = GradientUpdate(
        {"a": SGD(first.parameters(), 0.1), "b": SGD(second.parameters(), 0.1)}, phase=PHASE, runtime=CPU
    )
    before = [parameter.clone() for parameter in second.parameters()]
    update.minimise(second(first(torch.ones(2, 3))).sum(), "a")
    assert all(torch.equal(a, b) for a, b in zip(before, second.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in [*first.parameters(), *second.parameters()])


def test_gradients_equal_those_of_backward_and_leave_unused_parameters_at_zero() -> None:
    first, second = two_networks()
    update = GradientUpdate(
        {"main": SGD([*first.parameters(), *second.parameters()], 0.1)}, phase=PHASE, runtime=CPU
    )
    found = update.gradients(first(torch.ones(2, 3)).pow(2).sum())
    first(torch.ones(2, 3)).pow(2).sum().backward()
    assert torch.equal(found[0], first.weight.grad) and torch.equal(found[1], first.bias.grad)
    assert not found[2].any() and not found[3].any()


def test_gradients_of_two_losses_can_be_combined_over_one_graph() -> None:
    first, _ = two_networks()
    update = GradientUpdate({"main": SGD(first.parameters(), 0.1)}, phase=PHASE, runtime=CPU)
    output = first(torch.ones(1, 3))
    one = update.gradients(output.sum(), keep_graph=True)
    two = update.gradients(output.pow(2).sum())
    before = first.weight.detach().clone()
    update.apply([a - b for a, b in zip(one, two, strict=True)])
    assert torch.allclose(first.weight, before - 0.1 * (one[0] - two[0]))


def test_the_step_is_clipped_to_the_norm() -> None:
    weight = nn.Parameter(torch.zeros(4))
    update = GradientUpdate({"main": SGD([weight], 1.0)}, phase=PHASE, runtime=CPU, clip_norm=2.0)
    update.minimise((weight * 100).sum())
    assert torch.allclose(weight.norm(), torch.tensor(2.0), atol=1e-4)


def test_every_group_follows_the_schedule_from_its_own_rate() -> None:
    first, second = two_networks()
    groups = [{"params": first.parameters(), "lr": 0.1}, {"params": second.parameters(), "lr": 0.01}]
    optimizer = SGD(groups)
    update = GradientUpdate({"main": optimizer}, phase=PHASE, runtime=CPU)
    update.begin(Progress(phase="p", step=5, num_steps=10), ())
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
        [0.1 * poly(0.5), 0.01 * poly(0.5)]
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_step(value: float) -> None:
    first, _ = two_networks()
    before = first.weight.detach().clone()
    update = GradientUpdate({"main": SGD(first.parameters(), 0.1)}, phase=PHASE, runtime=CPU)
    update.begin(Progress(phase="p", step=7, num_steps=10), ["A/1", "A/2"])
    with pytest.raises(MethodError, match="'main' are not finite in phase 'p', step 7; cases: A/1, A/2"):
        # The gradient is finite: a constant was added.
        update.minimise(first(torch.ones(1, 3)).sum() + value)
    assert torch.equal(first.weight, before)


def test_an_unknown_optimiser_is_named_with_the_known_ones() -> None:
    first, _ = two_networks()
    update = GradientUpdate({"seg": SGD(first.parameters(), 0.1)}, phase=PHASE, runtime=CPU)
    with pytest.raises(MethodError, match="has no optimiser 'main'; it has 'seg'"):
        update.minimise(first(torch.ones(1, 3)).sum())


def test_a_second_forward_in_bf16_sees_the_weights_of_the_step_before() -> None:
    runtime = Runtime(device=torch.device("cpu"), precision="bf16")
    layer = nn.Linear(8, 8, bias=False)
    update = GradientUpdate({"main": SGD(layer.parameters(), 1.0)}, phase=PHASE, runtime=runtime)
    image = torch.ones(1, 8)
    with runtime.autocast():
        first = layer(image)
        update.minimise(F.mse_loss(first.float(), torch.full((1, 8), 50.0)))
        second = layer(image)
    with runtime.autocast():
        fresh = layer(image)
    assert not torch.equal(first, second) and torch.equal(second, fresh)


FP16 = Runtime(device=torch.device("cpu"), precision="fp16")
OPTIMIZERS = {
    "SGD": lambda parameters: SGD(parameters, 0.1, momentum=0.9),
    "AdamW": lambda parameters: AdamW(parameters, 0.1),
    "LAMB": lambda parameters: Lamb(parameters, 0.1),
}
over_optimizers = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def state_of(network: nn.Module, optimizer: Optimizer) -> list[Any]:
    moments = [value for state in optimizer.state.values() for value in state.values()]
    counts = [group.get("num_steps") for group in optimizer.param_groups]
    return [torch.as_tensor(value).clone() for value in (*network.parameters(), *moments)] + counts


def same(one: list[Any], other: list[Any]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


@over_optimizers
def test_scaling_changes_no_update(make: Any) -> None:
    found = []
    for runtime in (CPU, FP16):
        network, _ = two_networks()
        optimizer = make(network.parameters())
        update = GradientUpdate({"main": optimizer}, phase=PHASE, runtime=runtime, clip_norm=1.0)
        for number in range(3):
            update.minimise(network(torch.full((2, 3), 1.0 + number)).square().sum())
        found.append(state_of(network, optimizer))
    assert same(*found)


@over_optimizers
def test_an_update_that_overflows_changes_nothing_and_halves_the_scale(make: Any) -> None:
    network, _ = two_networks()
    optimizer, scale = make(network.parameters()), LossScale()
    update = GradientUpdate({"main": optimizer}, phase=PHASE, runtime=FP16, scale=scale)
    update.minimise(network(torch.ones(1, 3)).sum())
    before = state_of(network, optimizer)
    update.minimise(Overflow.apply(network(torch.ones(1, 3))).sum())
    assert same(before, state_of(network, optimizer)) and scale == LossScale(2.0**15)
    update.minimise(network(torch.ones(1, 3)).sum())
    assert not same(before, state_of(network, optimizer)) and scale == LossScale(2.0**15, lasted=1)


def test_the_scale_doubles_when_nothing_has_overflowed_for_long() -> None:
    scale = LossScale(8.0)
    for _ in range(2000):
        scale.note(overflowed=False)
    assert scale == LossScale(16.0)


def test_gradients_of_inputs_are_not_scaled_and_an_overflow_in_them_is_one_of_the_update() -> None:
    network, _ = two_networks()
    scale = LossScale()
    optimizers = {name: SGD(network.parameters(), 0.1) for name in ("inner", "outer")}
    update = GradientUpdate(optimizers, phase=PHASE, runtime=FP16, scale=scale)
    image = torch.ones(1, 3, requires_grad=True)
    *_, gradient = update.gradients(network(image).sum(), "inner", inputs=[image])
    assert torch.equal(gradient, network.weight.sum(0, keepdim=True))
    before = network.weight.detach().clone()
    *_, gradient = update.gradients(Overflow.apply(network(image)).sum(), "inner", inputs=[image])
    update.minimise(network(torch.ones(1, 3)).sum() * gradient.sum(), "outer")
    assert torch.equal(network.weight, before) and scale.value == 2.0**15


def test_what_no_smaller_scale_helps_is_an_error_that_names_float32() -> None:
    network, _ = two_networks()
    scale = LossScale()
    update = GradientUpdate({"main": SGD(network.parameters())}, phase=PHASE, runtime=FP16, scale=scale)
    with pytest.raises(MethodError, match=r"not finite.*--precision fp32"):
        update.minimise(network(torch.ones(1, 3)).sum() * torch.inf)
    assert scale == LossScale()
    with pytest.raises(MethodError, match=r"not finite.*--precision fp32"):
        for _ in range(18):
            update.minimise(Overflow.apply(network(torch.ones(1, 3))).sum())
