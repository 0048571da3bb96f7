"""Losses of tasks: empty slots cost nothing, absent tasks teach, the datasets' labels become targets."""

import pytest
import torch

from medplan.data.labels import IGNORE, LabelSpace
from medplan.learning.task_losses import TaskLoss, adaptive_tversky, binary_cross_entropy, pool_slots

TWO = LabelSpace(names=("liver", "spleen"), values=((1,), (2,)))
REGIONS = LabelSpace(names=("whole", "core"), values=((1, 2), (2,)), region_order=(1, 2))


def make(expected=2.0, skips_absent=True):
    return TaskLoss([TWO, REGIONS], num_slots=3, skips_absent=skips_absent, expected=expected)


def test_codes_become_one_target_per_task_of_their_dataset():
    codes = torch.tensor([0, 1, 2, IGNORE], dtype=torch.int16).reshape(1, 1, 1, 4).expand(2, 1, 1, 4)
    target, valid = make().targets(codes, torch.tensor([0, 1]))
    assert target[0, :, 0, 0, :3].int().tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert target[1, :, 0, 0, :3].int().tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0]]
    assert valid[:, 0, 0, 0].tolist() == [[True, True, True, False]] * 2


def test_neither_empty_slots_nor_ignored_voxels_have_a_gradient():
    logits = torch.randn(1, 3, 2, 3, 4, requires_grad=True)
    codes = torch.randint(0, 3, (1, 2, 3, 4), dtype=torch.int16)
    codes[:, 0] = IGNORE
    make()([logits], codes, torch.tensor([0]), torch.tensor([[True, True, False]])).backward()
    assert logits.grad[:, 2].abs().max() == 0 and logits.grad[:, :, 0].abs().max() == 0
    assert logits.grad[:, :2, 1].abs().min() > 0


@pytest.mark.parametrize("expected", [2.0, None])
def test_a_batch_without_any_task_has_a_loss_of_zero(expected):
    codes = torch.zeros(2, 2, 3, 4, dtype=torch.int16)
    is_real = torch.zeros(2, 3, dtype=torch.bool)
    loss = make(expected)([torch.randn(2, 3, 2, 3, 4)], codes, torch.tensor([0, 1]), is_real)
    assert loss == 0


def test_an_absent_task_costs_nothing_once_it_is_not_predicted_and_has_a_gradient_before():
    codes, source = torch.zeros(1, 4, 4, 4, dtype=torch.int16), torch.tensor([0])
    is_real = torch.tensor([[True, True, False]])
    assert make()([torch.full((1, 3, 4, 4, 4), -30.0)], codes, source, is_real) < 1e-6
    logits = torch.full((1, 3, 4, 4, 4), -2.0, requires_grad=True)
    make()([logits], codes, source, is_real).backward()
    assert logits.grad[:, :2].min() > 0
    released = make(None, skips_absent=False)
    assert released([torch.full((1, 3, 4, 4, 4), -30.0)], codes, source, is_real) == pytest.approx(1)


def test_absence_pulls_less_hard_than_presence():
    """Else tasks that are absent from most patches are never found: their sigmoids have no gradient left."""

    def pull(codes):
        logits = torch.full((1, 3, 8, 8, 8), -7.0, requires_grad=True)
        is_real = torch.tensor([[True, False, False]])
        make()([logits], codes, torch.tensor([0]), is_real).backward()
        return logits.grad[0, 0].sum()

    absent = torch.zeros(1, 8, 8, 8, dtype=torch.int16)
    present = absent.clone()
    present[:, 2:4, 2:4, 2:4] = 1
    assert 0 < pull(absent) < -pull(present)


def test_halves_of_a_batch_have_the_mean_loss_of_the_whole_whatever_tasks_they_hold():
    loss, source = make(), torch.tensor([0, 1])
    logits, codes = torch.randn(2, 3, 2, 3, 4), torch.randint(0, 3, (2, 2, 3, 4), dtype=torch.int16)
    is_real = torch.tensor([[True, False, False], [True, True, True]])
    ones = [slice(0, 1), slice(1, 2)]
    parts = [loss([logits[i]], codes[i], source[i], is_real[i]) for i in ones]
    assert loss([logits], codes, source, is_real) == pytest.approx(sum(parts).item() / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("found", "missed", "invented", "alpha"), [(6, 4, 0, 0.2), (6, 0, 4, 0.8), (5, 2, 6, 0.75)]
)
def test_the_commoner_errors_weigh_more_within_limits(found, missed, invented, alpha):
    target, predicted = torch.zeros(2, 20, dtype=torch.bool)
    target[: found + missed] = True
    predicted[:found] = predicted[10 : 10 + invented] = True
    logits = torch.where(predicted, 30.0, -30.0)
    loss = adaptive_tversky(logits.view(1, 1, 1, 4, 5), target.view(1, 1, 1, 4, 5)).item()
    assert loss == pytest.approx(1 - found / (found + alpha * invented + (1 - alpha) * missed), abs=1e-5)


def test_losses_are_computed_in_float32():
    logits = torch.randn(1, 1, 8, 8, 8).half()
    target = torch.rand(1, 1, 8, 8, 8) < 0.5
    for loss in (binary_cross_entropy, adaptive_tversky):
        assert loss(logits, target).dtype == torch.float32
        assert torch.allclose(loss(logits, target), loss(logits.float(), target))


def test_slots_count_alike_as_released():
    values, is_real = torch.tensor([[1.0, 5.0], [3.0, 7.0]]), torch.tensor([[True, False], [True, True]])
    assert pool_slots(values, is_real) == pytest.approx(11 / 3)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_patch_weighs_its_number_of_tasks_to_a_power(power):
    values, is_real = torch.ones(2, 4, requires_grad=True), torch.tensor([[True] + [False] * 3, [True] * 4])
    pool_slots(values, is_real, expected=1.0, power=power).backward()
    assert values.grad.sum(1).tolist() == pytest.approx([1 / 2, 4**power / 2])


def test_an_unknown_modality_costs_nothing():
    scores = torch.randn(3, 4)
    assert make().modality(scores, torch.tensor([-1, -1, -1])) == 0
    assert make(None).modality(scores, torch.tensor([-1, -1, -1])) == 0
