"""SAM's image encoder on volumes, slice by slice, and decoders that upsample its one coarse map.

Source: the encoder ``sam`` of Bi-JROS' official code (no licence file; read, not copied).

Shapes: B batch, C channels, D features, Z Y X voxels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medplan.networks.joint import Maps, VolumeEncoder, Voxel
from medplan.networks.sam import OUTPUT_CHANNELS, TOKEN_PIXELS, build_sam_image_encoder

__all__ = ["SliceDecoder", "SliceEncoder"]


class SliceEncoder(VolumeEncoder):
    """Encodes every slice along z with SAM: (B, C, Z, S, S) -> one map (B, C * 256, Z, S / 16, S / 16).

    A channel is repeated to SAM's three; several channels are encoded one by one.

    Args:
        side: S, a multiple of 16; slices are padded to it.
        at_once: slices per pass, which bounds the memory.
    """

    def __init__(self, inputs: int, *, variant: str, side: int, at_once: int = 16) -> None:
        super().__init__()
        self.vit = build_sam_image_encoder(variant, side)
        self.side, self.at_once = side, at_once
        self.channels = (inputs * OUTPUT_CHANNELS,)
        self.strides = ((1, TOKEN_PIXELS, TOKEN_PIXELS),)

    def padded(self, size: Sequence[int]) -> Voxel:
        return int(size[0]), self.side, self.side

    def forward(self, volume_BCZYX: Tensor) -> Maps:
        batch, channels, depth = volume_BCZYX.shape[:3]
        slices = volume_BCZYX.flatten(0, 1).flatten(0, 1)[:, None]
        parts = [self.vit(part.expand(-1, 3, -1, -1)) for part in torch.split(slices, self.at_once)]
        maps = torch.unflatten(torch.cat(parts), 0, (batch, channels, depth))
        # (B, C, Z, D, y, x) -> (B, C * D, Z, y, x)
        return [maps.transpose(2, 3).flatten(1, 2)]


class _ResidualUp(nn.Module):
    """Two convolutions beside a shortcut, then nearest up-sampling in the plane."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, padding=1),
            nn.InstanceNorm3d(outputs, affine=True),
            nn.LeakyReLU(0.01),
            nn.Conv3d(outputs, outputs, 3, padding=1),
            nn.InstanceNorm3d(outputs, affine=True),
        )
        self.shortcut = nn.Sequential(nn.Conv3d(inputs, outputs, 1), nn.InstanceNorm3d(outputs, affine=True))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.body(x) + self.shortcut(x), 0.01)
        return F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")


class SliceDecoder(nn.Module):
    """Upsamples maps at a sixteenth of the plane's resolution to full resolution, without skip connections.

    Differs: the official segmentation head expects 32 channels and is handed 16, its registration decoder
    reads attributes that it does not have; both are set right here.
    """

    def __init__(
        self,
        encoder: VolumeEncoder,
        *,
        images: int,
        outputs: int,
        kernel: int,
        widths: tuple[int, ...] = (128, 64, 32, 16),
    ) -> None:
        super().__init__()
        before = (images * encoder.channels[0], *widths)
        self.ups = nn.Sequential(
            *(_ResidualUp(first, second) for first, second in zip(before, widths, strict=False))
        )
        self.head = nn.Conv3d(widths[-1], outputs, kernel, padding=kernel // 2)

    def forward(self, *maps: Maps) -> Tensor:
        answer: Tensor = self.head(self.ups(torch.cat([levels[0] for levels in maps], dim=1)))
        return answer
