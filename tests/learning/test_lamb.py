"""LAMB against its paper's formulas, written out for one tensor at a time."""

import pytest
import torch

from medplan.learning.lamb import Lamb


def naive(weight, gradients, *, lr, betas=(0.9, 0.999), eps=1e-5, decay=0.01):
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, gradient in enumerate(gradients, start=1):
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient**2
        scale = (square / (1 - betas[1] ** step)).sqrt() + eps
        way = mean / (1 - betas[0] ** step) / scale + decay * weight
        trust = weight.norm() / way.norm() if weight.norm() > 0 and way.norm() > 0 else 1.0
        weight = weight - lr * trust * way
    return weight


def test_five_steps_equal_the_formulas_of_the_paper():
    torch.manual_seed(0)
    starts = [torch.randn(3, 4).double(), torch.zeros(5).double(), torch.randn(2).double()]
    gradients = [[torch.randn_like(start) for start in starts] for _ in range(5)]
    parameters = [torch.nn.Parameter(start.clone()) for start in starts]
    optimizer = Lamb(parameters, 0.1, eps=1e-5, weight_decay=0.01)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient
        optimizer.step()
    for number, (parameter, start) in enumerate(zip(parameters, starts, strict=True)):
        expected = naive(start, [step[number] for step in gradients], lr=0.1)
        assert torch.allclose(parameter.detach(), expected, rtol=1e-12)


def test_a_step_moves_a_tensor_by_the_learning_rate_times_its_length():
    weight = torch.nn.Parameter(torch.full((4, 4), 2.0))
    weight.grad = torch.rand(4, 4) * 1e3
    before = weight.detach().clone()
    Lamb([weight], 0.01).step()
    assert (weight.detach() - before).norm() == pytest.approx(0.01 * before.norm().item(), rel=1e-5)


def test_a_gradient_of_zero_moves_nothing_without_weight_decay():
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.zeros(3)
    Lamb([weight], 0.1).step()
    assert torch.equal(weight.detach(), torch.ones(3))


def test_its_state_continues_exactly():
    def train(steps, optimizer, weight):
        for step in steps:
            weight.grad = torch.sin(torch.arange(4.0) + step)
            optimizer.step()

    whole = torch.nn.Parameter(torch.ones(4))
    train(range(6), Lamb([whole], 0.1), whole)
    first = torch.nn.Parameter(torch.ones(4))
    before = Lamb([first], 0.1)
    train(range(3), before, first)
    second = torch.nn.Parameter(first.detach().clone())
    after = Lamb([second], 0.1)
    after.load_state_dict(before.state_dict())
    train(range(3, 6), after, second)
    assert torch.equal(whole, second)
