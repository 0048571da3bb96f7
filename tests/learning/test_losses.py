import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from medplan.data.labels import IGNORE, LabelSpace
from medplan.learning.losses import (
    SegmentationLoss,
    balanced_cross_entropy,
    cross_entropy,
    deep_supervision,
    dice_loss,
    supervision_weights,
    targets,
)  # fmt: skip

EXCLUSIVE = LabelSpace(names=("liver", "spleen"), values=((1,), (5,)), ignore=9)
REGIONS = LabelSpace(names=("whole", "core"), values=((1, 2, 3), (2, 3)), region_order=(1, 2), ignore=9)


def batch(labels: LabelSpace, seed: int = 0, *, ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, len(labels.codes) + 1, (2, 3, 5, 4)).astype(np.int16)
    codes[rng.random(codes.shape) < ignored] = IGNORE
    logits = torch.from_numpy(rng.standard_normal((2, labels.num_outputs, 3, 5, 4)).astype(np.float32))
    return logits, torch.from_numpy(codes)


def naive_dice(p: np.ndarray, t: np.ndarray, axes: tuple[int, ...]) -> float:  # type: ignore[type-arg]
    common, total = (p * t).sum(axes), p.sum(axes) + t.sum(axes)
    return float((1 - (2 * common + 1e-5) / (total + 1e-5)).mean())


@pytest.mark.parametrize("batch_dice", [False, True])
def test_loss_of_exclusive_classes_equals_a_naive_version(batch_dice: bool) -> None:
    logits, codes = batch(EXCLUSIVE)
    z, y = logits.numpy().astype(np.float64), codes.numpy()
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    valid = (y != IGNORE)[:, None]
    onehot = np.stack([y == code for code in range(3)], 1)
    axes = (0, 2, 3, 4) if batch_dice else (2, 3, 4)
    dice = naive_dice((p * valid)[:, 1:], onehot[:, 1:], axes)
    entropy = -np.log((p * onehot).sum(1)[y != IGNORE]).mean()
    assert SegmentationLoss(EXCLUSIVE, batch_dice=batch_dice)(logits, codes).item() == pytest.approx(
        dice + entropy, rel=1e-5
    )


@pytest.mark.parametrize("batch_dice", [False, True])
def test_loss_of_regions_equals_a_naive_version(batch_dice: bool) -> None:
    logits, codes = batch(REGIONS)
    z, y = logits.numpy().astype(np.float64), codes.numpy()
    p = 1 / (1 + np.exp(-z))
    valid = np.broadcast_to((y != IGNORE)[:, None], z.shape)
    target = np.stack([np.isin(y, (1, 2, 3)), np.isin(y, (2, 3))], 1)
    dice = naive_dice(p * valid, target, (0, 2, 3, 4) if batch_dice else (2, 3, 4))
    entropy = -np.where(target, np.log(p), np.log(1 - p))[valid].mean()
    assert SegmentationLoss(REGIONS, batch_dice=batch_dice)(logits, codes).item() == pytest.approx(
        dice + entropy, rel=1e-5
    )


@pytest.mark.parametrize("labels", [EXCLUSIVE, REGIONS])
def test_ignored_voxels_have_no_gradient(labels: LabelSpace) -> None:
    logits, codes = batch(labels)
    logits.requires_grad_()
    SegmentationLoss(labels)(logits, codes).backward()
    assert logits.grad is not None
    ignored = (codes == IGNORE).unsqueeze(1).expand_as(logits)
    assert torch.all(logits.grad[ignored] == 0)
    assert torch.all(logits.grad[~ignored] != 0)


@pytest.mark.parametrize("labels", [EXCLUSIVE, REGIONS])
def test_a_perfect_answer_costs_nothing(labels: LabelSpace) -> None:
    _, codes = batch(labels)
    target, _ = targets(codes, torch.from_numpy(labels.membership()))
    assert SegmentationLoss(labels)((target.float() - 0.5) * 200, codes).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("labels", [EXCLUSIVE, REGIONS])
def test_a_patch_without_annotation_gives_a_finite_loss(labels: LabelSpace) -> None:
    logits, codes = batch(labels)
    loss = SegmentationLoss(labels)(logits.requires_grad_(), torch.full_like(codes, IGNORE))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None and torch.all(logits.grad == 0)


def test_dice_of_half_probabilities_has_its_closed_form() -> None:
    p = torch.full((1, 1, 2, 2, 2), 0.5)
    t = torch.zeros(1, 1, 2, 2, 2, dtype=torch.bool)
    t[..., 0] = True
    assert dice_loss(p, t).item() == pytest.approx(1 - 2 * 2 / (4 + 4), abs=1e-5)


def test_batch_dice_pools_samples() -> None:
    p = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1, 1)
    t = torch.tensor([True, True]).view(2, 1, 1, 1, 1)
    assert dice_loss(p, t, batch=True).item() == pytest.approx(1 - 2 / 3, abs=1e-4)
    assert dice_loss(p, t).item() == pytest.approx(0.5, abs=1e-4)


def test_cross_entropy_of_equal_logits_is_the_log_of_their_number() -> None:
    codes = torch.zeros(1, 2, 2, 2, dtype=torch.int16)
    assert cross_entropy(torch.zeros(1, 7, 2, 2, 2), codes).item() == pytest.approx(math.log(7))


def test_losses_are_float32_for_bfloat16_logits() -> None:
    logits, codes = batch(EXCLUSIVE)
    low = SegmentationLoss(EXCLUSIVE)(logits.bfloat16(), codes)
    assert low.dtype == torch.float32
    assert low.item() == SegmentationLoss(EXCLUSIVE)(logits.bfloat16().float(), codes).item()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_supervision_weights_halve_and_sum_to_one(count: int) -> None:
    weights = supervision_weights(count)
    assert sum(weights) == pytest.approx(1)
    assert all(fine == 2 * coarse for fine, coarse in pairwise(weights))


def test_deep_supervision_reduces_codes_by_nearest_neighbour() -> None:
    codes = torch.arange(4 * 8 * 8, dtype=torch.int16).view(1, 4, 8, 8)
    seen: list[Tensor] = []

    def record(logits: Tensor, target: Tensor) -> Tensor:
        seen.append(target)
        return logits.sum()

    total = deep_supervision(record, [torch.ones(1, 1, 4, 8, 8), torch.ones(1, 1, 4, 4, 4)], codes)
    assert torch.equal(seen[0], codes)
    assert torch.equal(seen[1], codes[:, :, ::2, ::2])
    assert total.item() == pytest.approx(256 * 2 / 3 + 64 / 3)


def test_balanced_cross_entropy_weighs_every_class_alike_and_never_loses_sight_of_one() -> None:
    target = torch.zeros(1, 3, 4, 4, 4)
    target[:, 0], target[:, 0, 0], target[:, 1, 0] = 1, 0, 1
    logits = torch.zeros(1, 3, 4, 4, 4)
    logits[:, 0] = 30.0
    logits.requires_grad_()
    loss = balanced_cross_entropy(logits.log_softmax(1), target)
    # Class 0 is right, class 1 is missed by 30 everywhere, class 2 is absent.
    assert loss.item() == pytest.approx(15)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[:, 1, 0].sum() < -0.3
    (dead,) = torch.autograd.grad(dice_loss(logits.softmax(1)[:, 1:], target[:, 1:]), logits)
    assert dead[:, 1].abs().max() < 1e-10


def test_balance_is_added_and_leaves_out_what_is_not_annotated() -> None:
    logits, codes = batch(EXCLUSIVE)
    loss = SegmentationLoss(EXCLUSIVE)
    balanced = np.mean(
        [-logits.log_softmax(1)[:, code][codes == code].numpy().mean(dtype=np.float64) for code in range(3)]
    )
    assert loss(logits, codes, balance=0.3).item() == pytest.approx(
        loss(logits, codes).item() + 0.3 * balanced, rel=1e-5
    )
