"""The all-MLP decoder of SegFormer.

Source: Xie et al. 2021, "SegFormer", arXiv:2105.15203, section 3.2.
Differs: the 1x1 fusion is applied to every map before it is enlarged instead of to their concatenation
afterwards. Enlarging is linear and keeps constants, so the result is the same, for a quarter of the memory
and less arithmetic.

Shapes: B batch, C channels, K outputs, Y X positions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MlpHead"]


class MlpHead(nn.Module):
    """Logits at the resolution of the finest map.

    Args:
        widths: channels of the maps, finest first.
        num_outputs: K.
        hidden: common width; 768 as released for B3 to B5 (256 for B0 and B1 in SegFormer itself).
        dropout: probability that a whole channel is dropped before the last layer, in training.
    """

    def __init__(
        self, widths: Sequence[int], num_outputs: int, *, hidden: int = 768, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(width, hidden) for width in widths)
        self.fusion = nn.Conv2d(hidden * len(widths), hidden, 1, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(hidden, num_outputs, 1)

    def forward(self, maps_BCYX: Sequence[Tensor]) -> Tensor:
        """Return logits_BKYX on the grid of the first map."""
        size = maps_BCYX[0].shape[2:]
        # The published fusion kernel expects the coarsest map first.
        kernels = reversed(self.fusion.weight.chunk(len(self.projections), dim=1))
        fused: Tensor | None = None
        for map_BCYX, projection, kernel in zip(maps_BCYX, self.projections, kernels, strict=True):
            tokens = projection(map_BCYX.flatten(2).transpose(1, 2)).transpose(1, 2)
            part = F.conv2d(tokens.unflatten(2, map_BCYX.shape[2:]), kernel)
            if part.shape[2:] != size:
                part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
            fused = part if fused is None else fused + part
        assert fused is not None
        return torch.as_tensor(self.classifier(self.dropout(F.relu(self.norm(fused)))))
