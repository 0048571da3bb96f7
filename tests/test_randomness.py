"""Randomness is a function of names and counters."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from medplan.commands.training import _build
from medplan.plan.schema import Plan
from medplan.randomness import fold_in, generator, seeded
from tests.conformance.tiny import tiny_plan


def test_the_same_parts_give_the_same_numbers_on_every_machine() -> None:
    assert fold_in(0, "main", 1) == fold_in(0, "main", 1)
    assert fold_in(7, "phase", 3) == 7331497327150014711


def test_every_part_and_their_order_matter() -> None:
    seeds = {fold_in(*parts) for parts in [(0, 1), (1, 0), (0, "1"), (0, 1, 0), ("01",), (1,)]}
    assert len(seeds) == 6


def test_elements_are_independent_of_each_other() -> None:
    draws = np.stack([generator(0, "p", i).standard_normal(50) for i in range(200)])
    correlation = np.corrcoef(draws) - np.eye(200)
    assert abs(correlation).mean() < 0.15


def test_seeding_a_block_leaves_the_outside_as_it_was() -> None:
    np.random.seed(3)
    random.seed(3)
    expected = np.random.rand(), random.random()
    np.random.seed(3)
    random.seed(3)
    with seeded(11):
        inside = np.random.rand()
    assert (np.random.rand(), random.random()) == expected
    with seeded(11):
        assert np.random.rand() == inside


def test_seeding_is_undone_after_an_error() -> None:
    state = np.random.get_state()[1].copy()
    with pytest.raises(RuntimeError), seeded(5):
        raise RuntimeError
    assert (np.random.get_state()[1] == state).all()


def test_first_weights_depend_on_the_seed_of_the_plan_and_on_nothing_else() -> None:
    plan = tiny_plan("supervised")
    other = replace(plan, training=replace(plan.training, seed=plan.training.seed + 1))

    def weights(plan: Plan, state: int) -> torch.Tensor:
        torch.manual_seed(state)
        parameters = _build(plan, None, resume=False).parameters()
        return torch.cat([parameter.detach().flatten() for parameter in parameters])

    assert torch.equal(weights(plan, 1), weights(plan, 2))
    assert not torch.equal(weights(plan, 1), weights(other, 1))
