"""Convolutions behind a parameter-free instance norm and a ReLU, in three dimensions."""

# Shapes: B batch, C channels, Z Y X voxels.

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NormedConv", "PreActivationBlock", "SeparableConv", "Stem", "enlarge", "instance_norm"]

EPS = 1e-4


def instance_norm(features_BCZYX: Tensor, eps: float = EPS) -> Tensor:
    """Bring every channel of every sample to mean 0 and deviation 1; a single voxel becomes 0."""
    if features_BCZYX[0, 0].numel() == 1:
        return torch.zeros_like(features_BCZYX)
    return F.instance_norm(features_BCZYX, eps=eps)


def enlarge(features_BCZYX: Tensor, size: torch.Size) -> Tensor:
    """Interpolate (trilinear, corners aligned) to a size (z, y, x), in float32 under mixed precision."""
    kind = features_BCZYX.dtype
    exact = features_BCZYX.float() if kind in (torch.float16, torch.bfloat16) else features_BCZYX
    return F.interpolate(exact, size=list(size), mode="trilinear", align_corners=True).to(kind)


class NormedConv(nn.Module):
    """Instance norm, ReLU (unless `activates` is False), convolution without bias."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int = 3, groups: int = 1, activates: bool = True
    ) -> None:
        super().__init__()
        self.activates = activates
        self.conv = nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = instance_norm(x)
        answer: Tensor = self.conv(F.relu(x) if self.activates else x)
        return answer


class PreActivationBlock(nn.Module):
    """Two normed convolutions beside a shortcut, which is one too where the channels change.

    Source: He et al. 2016, arXiv:1603.05027; the 3x3x3 shortcut as in the code of arXiv:2306.02416.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = NormedConv(inputs, outputs)
        self.second = NormedConv(outputs, outputs)
        self.shortcut = NormedConv(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.second(self.first(x)) + self.shortcut(x)
        return answer


class SeparableConv(nn.Module):
    """A convolution per channel, then one across channels; no bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv3d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.pointwise = nn.Conv3d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.pointwise(self.depthwise(x))
        return answer


class Stem(nn.Module):
    """A convolution of the raw image and one block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=1, bias=False)
        self.block = PreActivationBlock(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.block(self.conv(x))
        return answer
