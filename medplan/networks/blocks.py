"""Convolution blocks that networks are composed of, in two or three dimensions.

Inside these modules 2-D tensors are (B, C, Y, X) and 3-D ones (B, C, Z, Y, X); sizes are given as (z, y, x)
in both cases, and 2-D modules leave z out.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConvBlock", "ResidualBlock", "convolution", "initialise", "norm", "planar", "transposed"]

SLOPE = 0.01
"""Of the leaky ReLU, as in nnU-Net."""

Dims = Literal[2, 3]
Size = tuple[int, int, int]


def planar(size: Size, dims: Dims) -> tuple[int, ...]:
    """Return (z, y, x) without z for two dimensions."""
    return size if dims == 3 else size[1:]


def convolution(
    inputs: int, outputs: int, *, kernel: Size, stride: Size = (1, 1, 1), dims: Dims, bias: bool = False
) -> nn.Module:
    """Return a convolution with odd kernel that keeps the size at stride 1 (padding kernel // 2)."""
    kind: type[nn.Module] = nn.Conv3d if dims == 3 else nn.Conv2d
    sides = planar(kernel, dims)
    return kind(inputs, outputs, sides, planar(stride, dims), tuple(side // 2 for side in sides), bias=bias)


def transposed(inputs: int, outputs: int, *, stride: Size, dims: Dims) -> nn.Module:
    """Return a transposed convolution that multiplies the size by `stride`."""
    kind: type[nn.Module] = nn.ConvTranspose3d if dims == 3 else nn.ConvTranspose2d
    return kind(inputs, outputs, planar(stride, dims), planar(stride, dims))


def norm(features: int, *, dims: Dims) -> nn.Module:
    """Return an affine instance norm."""
    kind: type[nn.Module] = nn.InstanceNorm3d if dims == 3 else nn.InstanceNorm2d
    return kind(features, affine=True)


class ConvBlock(nn.Module):
    """Convolution, instance norm, leaky ReLU.

    Differs: nnU-Net's convolutions have a bias, which the instance norm behind them cancels.
    """

    def __init__(
        self, inputs: int, outputs: int, *, kernel: Size, stride: Size = (1, 1, 1), dims: Dims
    ) -> None:
        super().__init__()
        self.conv = convolution(inputs, outputs, kernel=kernel, stride=stride, dims=dims)
        self.norm = norm(outputs, dims=dims)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), SLOPE, inplace=True)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut; the shortcut averages over the stride and projects to new channels.

    Source: He et al. 2016, arXiv:1603.05027; with the pooled shortcut of He et al. 2018, arXiv:1812.01187
        (ResNet-D).
    """

    def __init__(
        self, inputs: int, outputs: int, *, kernel: Size, stride: Size = (1, 1, 1), dims: Dims
    ) -> None:
        super().__init__()
        self.first = ConvBlock(inputs, outputs, kernel=kernel, stride=stride, dims=dims)
        self.second = convolution(outputs, outputs, kernel=kernel, dims=dims)
        self.norm = norm(outputs, dims=dims)
        shortcut: list[nn.Module] = []
        if max(planar(stride, dims)) > 1:
            pool: type[nn.Module] = nn.AvgPool3d if dims == 3 else nn.AvgPool2d
            shortcut.append(pool(planar(stride, dims), planar(stride, dims)))
        if inputs != outputs:
            shortcut += [convolution(inputs, outputs, kernel=(1, 1, 1), dims=dims), norm(outputs, dims=dims)]
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm(self.second(self.first(x)))
        return F.leaky_relu(residual + self.shortcut(x), SLOPE, inplace=True)


def initialise(network: nn.Module) -> None:
    """Draw convolution weights as He et al. do; let every residual block begin as its shortcut.

    Source: He et al. 2015, arXiv:1502.01852; zero-initialised residuals: Goyal et al. 2017, arXiv:1706.02677.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, a=SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.norm.weight)  # type: ignore[arg-type]
