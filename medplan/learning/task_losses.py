"""Losses of independent tasks: one sigmoid each, some slots empty, some tasks absent from a patch.

All of them compute in float32 and return one value per sample and slot.
"""

# Shapes: B batch, T task slots, D datasets, M codes, Z Y X voxels.

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medplan.data.labels import IGNORE, LabelSpace

__all__ = ["TaskLoss", "adaptive_tversky", "binary_cross_entropy", "pool_slots"]

TINY = 1e-6
ALPHA = (0.2, 0.8)


def binary_cross_entropy(
    logits_BTZYX: Tensor, target_BTZYX: Tensor, valid_B1ZYX: Tensor | None = None
) -> Tensor:
    """Return (B, T): the mean over the voxels that are valid, 0 where none is."""
    logits, target = _exact(logits_BTZYX), _exact(target_BTZYX)
    voxelwise = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if valid_B1ZYX is None:
        return voxelwise.mean((2, 3, 4))
    return (voxelwise * valid_B1ZYX).sum((2, 3, 4)) / valid_B1ZYX.sum((2, 3, 4)).clamp(min=1)


def adaptive_tversky(
    logits_BTZYX: Tensor,
    target_BTZYX: Tensor,
    valid_B1ZYX: Tensor | None = None,
) -> Tensor:
    """Return (B, T): 1 - TP / (TP + alpha FP + (1 - alpha) FN).

    alpha is the share of the false positives among the errors, between 0.2 and 0.8; gradients go through it.
    A task that is absent from the patch costs 1 whatever is predicted, and has no gradient.

    Source: Salehi et al. 2017, arXiv:1706.05721 (Tversky loss); alpha and its range as in the code of
        arXiv:2306.02416.
    """
    probability, target = _exact(logits_BTZYX).sigmoid(), _exact(target_BTZYX)
    if valid_B1ZYX is not None:
        probability, target = probability * valid_B1ZYX, target * valid_B1ZYX
    found = (probability * target).sum((2, 3, 4))
    invented, missed = probability.sum((2, 3, 4)) - found, target.sum((2, 3, 4)) - found
    alpha = (invented / (invented + missed + TINY)).clamp(*ALPHA)
    errors = alpha * invented + (1 - alpha) * missed
    return 1 - found / (found + errors + TINY)


def pool_slots(
    values_BT: Tensor, is_real_BT: Tensor, *, expected: float | None = None, power: float = 1.0
) -> Tensor:
    """Return the mean over the slots that hold a task, a scalar; 0 if none does.

    Args:
        expected: mean weight of a sample. The sum is divided by it and by B, which is constant, so that ranks
            may hold different numbers of tasks. None divides by the slots that are there, as released.
        power: a sample weighs its number of tasks to this power: with 1 all tasks are alike, with 0 all
            samples.
    """
    if expected is None:
        return (values_BT * is_real_BT).sum() / is_real_BT.sum().clamp(min=1)
    weights_B1 = is_real_BT.sum(1, keepdim=True).clamp(min=1) ** (power - 1)
    return (values_BT * is_real_BT * weights_B1).sum() / (len(values_BT) * expected)


class TaskLoss(nn.Module):
    """Cross-entropy plus Tversky loss of the tasks of several datasets.

    Args:
        labels: of each dataset; the task in slot i of a dataset is its i-th class or region.
        num_slots: task slots of a sample.
        skips_absent: a task that is absent from a patch has no Tversky loss there; the cross-entropy teaches
            its absence. Released: False, which adds 1 to the loss and nothing to its gradient.
        expected: of `pool_slots`; None also takes the mean of the modality loss over the known ones only.
        power: of `pool_slots`.
    """

    targets_DTM: Tensor

    def __init__(
        self,
        labels: Sequence[LabelSpace],
        *,
        num_slots: int,
        skips_absent: bool,
        expected: float | None,
        power: float = 1.0,
    ) -> None:
        super().__init__()
        self.skips_absent, self.expected, self.power = skips_absent, expected, power
        tables = [each.membership()[1 if each.is_exclusive else 0 :] for each in labels]
        width = max(table.shape[1] for table in tables)
        targets = np.zeros((len(tables), num_slots, width), dtype=bool)
        for row, table in zip(targets, tables, strict=True):
            row[: len(table), : table.shape[1]] = table
        # Not saved: it follows from the plan.
        self.register_buffer("targets_DTM", torch.tensor(targets.tolist()), persistent=False)

    def targets(self, codes_BZYX: Tensor, source_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, T, Z, Y, X): whether a voxel belongs to a task; and (B, 1, Z, Y, X): whether it counts.

        Args:
            source_B: number of the dataset of each sample.
        """
        num_codes = self.targets_DTM.shape[2]
        rows = codes_BZYX.clamp(min=0).long() + source_B.view(-1, 1, 1, 1) * num_codes
        table = self.targets_DTM.transpose(1, 2).flatten(0, 1)
        return table[rows].movedim(-1, 1), (codes_BZYX != IGNORE).unsqueeze(1)

    def forward(
        self, outputs: Sequence[Tensor], codes_BZYX: Tensor, source_B: Tensor, is_real_BT: Tensor
    ) -> Tensor:
        """Return the loss, averaged over `outputs`: logits (B, T, Z, Y, X) of one or several resolutions."""
        target, valid = self.targets(codes_BZYX, source_B)
        counts = (target & valid).any(-1).any(-1).any(-1) if self.skips_absent else is_real_BT
        losses = []
        for logits in outputs:
            slots = binary_cross_entropy(logits, target, valid)
            slots = slots + adaptive_tversky(logits, target, valid) * counts
            losses.append(pool_slots(slots, is_real_BT, expected=self.expected, power=self.power))
        return torch.stack(losses).mean()

    def modality(self, logits: Tensor, truth_B: Tensor) -> Tensor:
        """Return the cross-entropy of the modality, a scalar; unknown ones (-1) cost nothing."""
        total = F.cross_entropy(_exact(logits), truth_B, ignore_index=-1, reduction="sum")
        known = (truth_B >= 0).sum().clamp(min=1) if self.expected is None else len(truth_B)
        return total / known


def _exact(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
