"""Losses of S&D Messenger: on labelled patches, against pseudo-labels, and on what was pasted.

Source: the released code of S&D Messenger (read, not copied); the paper, arXiv:2407.07763, has the
cross-entropies only.

Shapes: B batch, K classes (0 is background), Z Y X voxels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from medplan.data.labels import IGNORE
from medplan.learning.losses import dice_loss, targets

__all__ = [
    "paste_consistency",
    "pseudo_label_loss",
    "pseudo_labels",
    "squared_dice_loss",
    "supervised_loss",
    "weighted_cross_entropy",
]

SMOOTH = 1e-5


def weighted_cross_entropy(
    logits_BKZYX: Tensor, codes_BZYX: Tensor, weights_K: Tensor | None = None
) -> Tensor:
    """Return the cross-entropy over annotated voxels, averaged with the weight of each voxel's class.

    The scale of the weights does not matter. 0 if nothing is annotated or all weights met are 0.
    """
    codes = codes_BZYX.long()
    weights = (
        logits_BKZYX.new_ones(logits_BKZYX.shape[1]) if weights_K is None else weights_K.to(logits_BKZYX)
    )
    total = F.cross_entropy(logits_BKZYX, codes, weights, ignore_index=IGNORE, reduction="sum")
    met = torch.where(codes == IGNORE, 0, weights[codes.clamp(min=0)]).sum()
    return total / met.clamp(min=1e-12)


def supervised_loss(
    logits_BKZYX: Tensor,
    codes_BZYX: Tensor,
    *,
    weights_K: Tensor | None = None,
    has_dice: bool = True,
    pools_batch: bool = False,
) -> Tensor:
    """Return `weighted_cross_entropy`, plus the soft Dice loss over the foreground classes.

    Args:
        has_dice: released: without.
        pools_batch: take the Dice over the batch rather than over each sample.
    """
    logits = logits_BKZYX.float()
    total = weighted_cross_entropy(logits, codes_BZYX, weights_K)
    if has_dice:
        membership = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
        target, valid = targets(codes_BZYX, membership)
        total = total + dice_loss(
            logits.softmax(1)[:, 1:], target[:, 1:], valid_B1ZYX=valid, batch=pools_batch
        )
    return total


def squared_dice_loss(logits_BKZYX: Tensor, codes_BZYX: Tensor, *, compat: bool = False) -> Tensor:
    """Return 1 - mean soft Dice over all classes with background, with squares in the denominator.

    Args:
        codes_BZYX: `IGNORE` voxels do not count.
        compat: released: predictions on `IGNORE` voxels count, although no class is true there.

    Source: Milletari et al. 2016, arXiv:1606.04797; sums over the whole batch as released.
    """
    codes = codes_BZYX.long().unsqueeze(1)
    counts = codes != IGNORE
    classes = torch.arange(logits_BKZYX.shape[1], device=codes.device).view(1, -1, 1, 1, 1)
    true = (codes == classes).to(logits_BKZYX)
    probabilities = logits_BKZYX.softmax(1)
    if not compat:
        probabilities = probabilities * counts
    axes = (0, 2, 3, 4)
    common = (probabilities * true).sum(axes)
    total = (probabilities**2).sum(axes) + true.sum(axes)
    return (1 - (2 * common + SMOOTH) / (total + SMOOTH)).mean()


def pseudo_label_loss(logits_BKZYX: Tensor, codes_BZYX: Tensor, *, compat: bool = False) -> Tensor:
    """Return the mean of cross-entropy and `squared_dice_loss`."""
    logits = logits_BKZYX.float()
    dice = squared_dice_loss(logits, codes_BZYX, compat=compat)
    return (weighted_cross_entropy(logits, codes_BZYX) + dice) / 2


def paste_consistency(labelled_BKZYX: Tensor, unlabelled_BKZYX: Tensor, mask_B1ZYX: Tensor) -> Tensor:
    """Return the mean squared difference of the logits inside the pasted boxes, over *all* elements."""
    return ((labelled_BKZYX - unlabelled_BKZYX) * mask_B1ZYX).square().mean()


def pseudo_labels(logits_BKZYX: Tensor, *, threshold: float = 0.0) -> Tensor:
    """Return (B, Z, Y, X) int64 classes; `IGNORE` where the largest probability is below `threshold`."""
    confidence, classes = logits_BKZYX.softmax(1).max(1)
    return classes if threshold <= 0 else torch.where(confidence >= threshold, classes, IGNORE)
