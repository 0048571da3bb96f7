"""Class weights that follow how hard each class still is.

Source: Wang and Li 2023, "DHC", arXiv:2307.11960, as used by S&D Messenger (the rows marked with a dagger).

Shapes: B batch, K classes (0 is background), P positions (any number of axes).
"""

import torch
from torch import Tensor, nn

from medplan.data.labels import IGNORE

__all__ = ["Difficulty", "hard_dice"]

SMOOTH = 1e-8


def hard_dice(predicted_BP: Tensor, codes_BP: Tensor, num_classes: int, *, compat: bool = False) -> Tensor:
    """Return the Dice of each class, pooled over the batch, of predicted classes against true ones.

    Args:
        predicted_BP: classes, integer.
        codes_BP: integer; `IGNORE` voxels do not count.
        compat: released slip: the truth is full of classes 0 and 1 and empty of all others.

    Returns: (K,) float32 in [0, 1]; 0.5 for a class that is in neither.
    """
    counts = codes_BP != IGNORE
    classes = torch.arange(num_classes, device=codes_BP.device).view(-1, *[1] * codes_BP.ndim)
    predicted = (predicted_BP.unsqueeze(0) == classes) & counts
    true = ((classes < 2) if compat else (codes_BP.unsqueeze(0) == classes)) & counts
    common = (predicted & true).flatten(1).sum(1).float()
    total = (predicted.flatten(1).sum(1) + true.flatten(1).sum(1)).float()
    return (2 * common + SMOOTH) / (total + 2 * SMOOTH)


class Difficulty(nn.Module):
    """Weights per class from how fast its Dice rises and falls; all its memory is in buffers.

    Args:
        num_classes: K.
        steps: of the exponential averages; 50.

    Source: arXiv:2307.11960, section 2.2 (DiffDW): (unlearning / learning)^(1/5) * (1 - Dice) * K.
    """

    last_dice: Tensor
    learning: Tensor
    unlearning: Tensor
    lack: Tensor

    def __init__(self, num_classes: int, *, steps: int = 50) -> None:
        super().__init__()
        self.num_classes, self.keep = num_classes, (steps - 1) / steps
        self.register_buffer("last_dice", torch.full((num_classes,), SMOOTH))
        self.register_buffer("learning", torch.zeros(num_classes))
        self.register_buffer("unlearning", torch.zeros(num_classes))
        self.register_buffer("lack", torch.ones(num_classes))

    @torch.no_grad()
    def forward(self, dice_K: Tensor) -> Tensor:
        """Take the Dice of one more step (see `hard_dice`) and return the weights (K,), not negative."""
        dice_K = dice_K.to(self.lack)
        change = dice_K - self.last_dice
        speed = torch.log(dice_K / self.last_dice)
        self.last_dice.copy_(dice_K)
        self.learning.lerp_(change.clamp(min=0) * speed, 1 - self.keep)
        self.unlearning.lerp_(change.clamp(max=0) * speed, 1 - self.keep)
        self.lack.lerp_(1 - dice_K, 1 - self.keep)
        trouble = ((self.unlearning + SMOOTH) / (self.learning + SMOOTH)) ** 0.2
        return trouble * self.lack * self.num_classes
