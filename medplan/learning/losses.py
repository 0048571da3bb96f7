"""Segmentation losses: Dice, cross-entropy, regions, deep supervision; ignored voxels do not count.

Shapes: B batch, K outputs of the network, Z Y X voxels, M codes.   logits_BKZYX, codes_BZYX

All losses compute in float32, whatever precision the logits come in.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medplan.data.labels import IGNORE, LabelSpace

__all__ = [
    "SegmentationLoss",
    "balanced_cross_entropy",
    "cross_entropy",
    "deep_supervision",
    "dice_loss",
    "mask_loss",
    "supervision_weights",
    "targets",
]

SMOOTH = 1e-5
"""Added to numerator and denominator of the Dice, as in nnU-Net."""


def targets(codes_BZYX: Tensor, membership_KM: Tensor) -> tuple[Tensor, Tensor]:
    """Translate codes into what the network's outputs should be.

    Args:
        codes_BZYX: integer codes; `IGNORE` where there is no annotation.
        membership_KM: `LabelSpace.membership` as a tensor of bool.

    Returns: target_BKZYX (bool) and valid_B1ZYX (bool); voxels that are not valid belong to no output.
    """
    valid_B1ZYX = (codes_BZYX != IGNORE).unsqueeze(1)
    target_BZYXK = membership_KM.T[codes_BZYX.clamp(min=0).long()]
    return target_BZYXK.movedim(-1, 1) & valid_B1ZYX, valid_B1ZYX


def dice_loss(
    probabilities_BKZYX: Tensor,
    target_BKZYX: Tensor,
    *,
    valid_B1ZYX: Tensor | None = None,
    batch: bool = False,
) -> Tensor:
    """Return 1 - mean soft Dice over the given outputs.

    Args:
        probabilities_BKZYX: in [0, 1]; leave the background out if it should not count.
        valid_B1ZYX: voxels that count; None for all.
        batch: pool the voxels of the whole batch per class, else average over samples and classes.

    Returns: a scalar in [0, 1]. A class that is absent and not predicted scores a Dice of 1 by the smoothing.
    Source: Milletari et al. 2016, arXiv:1606.04797; smoothing and sums as in nnU-Net.  Differs: nnU-Net
    leaves out the constant 1.
    """
    probabilities = probabilities_BKZYX.float()
    if valid_B1ZYX is not None:
        probabilities = probabilities * valid_B1ZYX
    axes = (0, 2, 3, 4) if batch else (2, 3, 4)
    common = (probabilities * target_BKZYX).sum(axes)
    total = probabilities.sum(axes) + target_BKZYX.sum(axes)
    return 1 - ((2 * common + SMOOTH) / (total + SMOOTH)).mean()


def cross_entropy(logits_BKZYX: Tensor, codes_BZYX: Tensor) -> Tensor:
    """Return the mean cross-entropy over annotated voxels, for exclusive classes; 0 if there are none."""
    classes = codes_BZYX.long()
    total = F.cross_entropy(logits_BKZYX.float(), classes, ignore_index=IGNORE, reduction="sum")
    return total / (classes != IGNORE).sum().clamp(min=1)


def balanced_cross_entropy(logs_BKZYX: Tensor, target_BKZYX: Tensor) -> Tensor:
    """Return the mean, over the classes that are there, of minus the mean log-probability inside each.

    Every class weighs the same however small it is, and one that is not predicted at all has a gradient,
    while that of the soft Dice vanishes.

    Args:
        logs_BKZYX: logarithms of probabilities.
        target_BKZYX: memberships in [0, 1], or bool.
    """
    logs = logs_BKZYX.to(torch.promote_types(logs_BKZYX.dtype, torch.float32))
    target = target_BKZYX.to(logs.dtype)
    voxels_K = target.sum(dim=(0, 2, 3, 4))
    logs_K = (target * logs).sum(dim=(0, 2, 3, 4)) / voxels_K.clamp_min(1)
    return -logs_K.sum() / (voxels_K > 0).sum().clamp_min(1)


class SegmentationLoss(nn.Module):
    """Dice plus cross-entropy for exclusive classes; Dice plus binary cross-entropy for regions.

    The Dice of exclusive classes leaves the background out.

    Args:
        labels: the label space of the codes.
        batch_dice: pool the Dice over the batch (nnU-Net does so in 2-D).
    """

    membership_KM: Tensor

    def __init__(self, labels: LabelSpace, *, batch_dice: bool = False) -> None:
        super().__init__()
        self.is_exclusive = labels.is_exclusive
        self.batch_dice = batch_dice
        # Not saved: it follows from the plan.
        self.register_buffer("membership_KM", torch.tensor(labels.membership().tolist()), persistent=False)

    def forward(self, logits_BKZYX: Tensor, codes_BZYX: Tensor, *, balance: float = 0.0) -> Tensor:
        """Return the loss, a float32 scalar.

        Args:
            balance: weight of `balanced_cross_entropy`, which exclusive classes are learned with besides.
        """
        logits = logits_BKZYX.float()
        target, valid = targets(codes_BZYX, self.membership_KM)
        if self.is_exclusive:
            probabilities = logits.softmax(1)[:, 1:]
            dice = dice_loss(probabilities, target[:, 1:], valid_B1ZYX=valid, batch=self.batch_dice)
            loss = dice + cross_entropy(logits, codes_BZYX)
            return loss + balance * balanced_cross_entropy(logits.log_softmax(1), target) if balance else loss
        dice = dice_loss(logits.sigmoid(), target, valid_B1ZYX=valid, batch=self.batch_dice)
        voxelwise = F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
        count = (valid.sum() * logits.shape[1]).clamp(min=1)
        return dice + (voxelwise * valid).sum() / count


def supervision_weights(count: int) -> tuple[float, ...]:
    """Return weights proportional to 1, 1/2, 1/4, ... for `count` resolutions, summing to 1."""
    raw = [0.5**level for level in range(count)]
    return tuple(weight / sum(raw) for weight in raw)


def deep_supervision(
    loss: Callable[[Tensor, Tensor], Tensor], outputs: Sequence[Tensor], codes_BZYX: Tensor
) -> Tensor:
    """Return the weighted sum of `loss` over resolutions.

    Args:
        outputs: logits (B, K, z, y, x), finest first; the first has the size of the codes.
        codes_BZYX: reduced to each output's size by nearest neighbour.

    Source: Lee et al. 2015, arXiv:1409.5185; weights as in nnU-Net, which builds the coarsest output of its
    decoder and gives it the weight 0, where `UNetDecoder` has no such output.
    """
    weights = supervision_weights(len(outputs))
    terms = [
        weight * loss(logits, _nearest(codes_BZYX, logits.shape[2:]))
        for weight, logits in zip(weights, outputs, strict=True)
    ]
    return torch.stack(terms).sum()


def _nearest(codes_BZYX: Tensor, shape: Sequence[int]) -> Tensor:
    for axis, size in enumerate(shape, start=1):
        if codes_BZYX.shape[axis] != size:
            index = torch.arange(size, device=codes_BZYX.device) * codes_BZYX.shape[axis] // size
            codes_BZYX = codes_BZYX.index_select(axis, index)
    return codes_BZYX


def mask_loss(
    logits_BP: Tensor, target_BP: Tensor, valid_BP: Tensor, *, dice: float = 0.8, bce: float = 0.2
) -> Tensor:
    """Return a weighted sum of squared Dice and binary cross-entropy of one mask per image.

    Args:
        target_BP: bool, what the mask should be at each point.
        valid_BP: bool, points that count.

    Source: MONAI's `DiceCELoss(sigmoid=True, squared_pred=True)`, as I-MedSAM uses it.  Differs: with one
    output MONAI 1.1 computes a softmax cross-entropy, which is 0; this is the binary one.
    """
    valid_BP = valid_BP.float()
    logits_BP, target_BP = logits_BP.float(), target_BP.float() * valid_BP
    probability_BP = logits_BP.sigmoid() * valid_BP
    overlap_B = (probability_BP * target_BP).sum(1)
    sizes_B = probability_BP.square().sum(1) + target_BP.sum(1)
    loss = dice * (1 - (2 * overlap_B + SMOOTH) / (sizes_B + SMOOTH)).mean()
    if bce == 0:
        return loss
    per_point = F.binary_cross_entropy_with_logits(logits_BP, target_BP, reduction="none") * valid_BP
    return loss + bce * per_point.sum() / valid_BP.sum().clamp_min(1)
