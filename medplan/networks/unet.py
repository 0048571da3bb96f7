"""The residual-encoder U-Net that the planner shapes.

Encoder and decoder are separate, so that a method can work on the feature maps between them. Both take and
give tensors of their own dimension; `UNet` takes and gives (B, C, Z, Y, X) in either case, with Z = 1 in two
dimensions.

Source: Isensee et al. 2024, arXiv:2404.09556 (nnU-Net ResEnc), which rests on Ronneberger et al. 2015,
arXiv:1505.04597.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from medplan.networks.blocks import ConvBlock, ResidualBlock, convolution, initialise, transposed
from medplan.plan.schema import Pyramid

__all__ = ["UNet", "UNetDecoder", "UNetEncoder"]


class UNetEncoder(nn.Module):
    """Turns an image into one feature map per stage of the pyramid, finest first."""

    def __init__(self, num_channels: int, pyramid: Pyramid, dims: Literal[2, 3]) -> None:
        super().__init__()
        self.stem = ConvBlock(num_channels, pyramid.features[0], kernel=pyramid.kernels[0], dims=dims)
        stages = []
        inputs = pyramid.features[0]
        for outputs, stride, kernel, blocks in zip(
            pyramid.features, pyramid.strides, pyramid.kernels, pyramid.blocks, strict=True
        ):
            first = ResidualBlock(inputs, outputs, kernel=kernel, stride=stride, dims=dims)
            rest = [ResidualBlock(outputs, outputs, kernel=kernel, dims=dims) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(first, *rest))
            inputs = outputs
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Take (B, num_channels, [Z,] Y, X), every side a multiple of the product of its strides.

        Returns: maps (B, features[i], ...), each `strides[i]` times smaller than the one before.
        """
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class UNetDecoder(nn.Module):
    """Turns the encoder's feature maps into logits.

    Args:
        deep_supervision: have an output layer at every resolution of the decoder but the coarsest; else at
            the full resolution only.
    """

    def __init__(
        self, pyramid: Pyramid, num_outputs: int, dims: Literal[2, 3], *, deep_supervision: bool = False
    ) -> None:
        super().__init__()
        upsample, blocks, heads = [], [], []
        features = pyramid.features
        for level in range(len(features) - 2, -1, -1):
            here, kernel = features[level], pyramid.kernels[level]
            upsample.append(
                transposed(features[level + 1], here, stride=pyramid.strides[level + 1], dims=dims)
            )
            first = ConvBlock(2 * here, here, kernel=kernel, dims=dims)
            more = pyramid.decoder_blocks[level] - 1
            blocks.append(
                nn.Sequential(first, *(ConvBlock(here, here, kernel=kernel, dims=dims) for _ in range(more)))
            )
            if level == 0 or (deep_supervision and level < len(features) - 2):
                heads.append(convolution(here, num_outputs, kernel=(1, 1, 1), dims=dims, bias=True))
        if not blocks:
            heads.append(convolution(features[0], num_outputs, kernel=(1, 1, 1), dims=dims, bias=True))
        self.upsample, self.blocks, self.heads = (
            nn.ModuleList(upsample),
            nn.ModuleList(blocks),
            nn.ModuleList(heads),
        )

    def features(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the decoded feature maps, finest first; the finest has the image's size."""
        x = maps[-1]
        decoded = [] if len(maps) > 1 else [x]
        for upsample, block, skip in zip(self.upsample, self.blocks, reversed(maps[:-1]), strict=True):
            x = block(torch.cat((upsample(x), skip), 1))
            decoded.append(x)
        return decoded[::-1]

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        """Return logits (B, num_outputs, [Z,] Y, X) of the image's size; in training also those of every
        coarser resolution that has an output layer, finest first.
        """
        heads = list(self.heads)[::-1] if self.training else [self.heads[-1]]
        return tuple(head(x) for head, x in zip(heads, self.features(maps), strict=False))


class UNet(nn.Module):
    """Encoder and decoder together, in and out (B, C, Z, Y, X).

    Args:
        num_channels: channels of the image.
        pyramid: shape of the network; see `medplan.plan.topology`.
        num_outputs: `LabelSpace.num_outputs`.
        dims: 2 works on single slices (Z = 1).
        deep_supervision: answer at coarser resolutions too, in training.
    """

    def __init__(
        self,
        num_channels: int,
        pyramid: Pyramid,
        num_outputs: int,
        dims: Literal[2, 3],
        *,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.dims = dims
        self.encoder = UNetEncoder(num_channels, pyramid, dims)
        self.decoder = UNetDecoder(pyramid, num_outputs, dims, deep_supervision=deep_supervision)
        initialise(self)

    def forward(self, image_BCZYX: Tensor) -> tuple[Tensor, ...]:
        """Return logits (B, num_outputs, Z, Y, X) of the image's size; in training those of coarser
        resolutions behind them.
        """
        return self.decode(self.encode(image_BCZYX))

    def encode(self, image_BCZYX: Tensor) -> list[Tensor]:
        """Return the encoder's maps, in the network's own dimension."""
        maps: list[Tensor] = self.encoder(image_BCZYX if self.dims == 3 else image_BCZYX.squeeze(2))
        return maps

    def decode(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        """Return logits as `forward` does, from the encoder's maps."""
        return tuple(logits if self.dims == 3 else logits.unsqueeze(2) for logits in self.decoder(maps))
