"""One encoder for two tasks: a registration decoder for pairs of images and a segmentation decoder.

The decoders are built from what an encoder says of itself, so that encoders can be exchanged.

Paper: Bi-JROS, Fan et al., CVPR 2024, pp. 11726-11735. Official code (no licence file): read, not copied.
"""

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medplan.checkpoint import restore
from medplan.errors import CheckpointError
from medplan.networks.recompute import run

__all__ = [
    "DoubleConv",
    "JointNetwork",
    "PyramidDecoder",
    "UNetEncoder",
    "VolumeEncoder",
    "from_published",
    "load_published_encoder",
]

# Shapes: B batch, C channels, K classes, Z Y X voxels.
Voxel = tuple[int, int, int]
Maps = list[Tensor]


class VolumeEncoder(nn.Module):
    """Turns a volume (B, C, Z, Y, X) into feature maps, finest first.

    Attributes:
        channels: of each map.
        strides: voxels of the input per voxel of each map, (z, y, x).
        recompute: do not keep activations inside the stages (see `medplan.networks.recompute`).
    """

    channels: tuple[int, ...]
    strides: tuple[Voxel, ...]
    recompute: bool = False

    def padded(self, size: Sequence[int]) -> Voxel:
        """Return the smallest size, not below `size`, that the encoder takes."""
        z, y, x = (-(-side // step) * step for side, step in zip(size, self.strides[-1], strict=True))
        return z, y, x


class DoubleConv(nn.Module):
    """Twice a convolution, a batch norm and a ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (inputs, outputs):
            layers += [
                nn.Conv3d(width, outputs, 3, padding=1),
                nn.BatchNorm3d(outputs),
                nn.ReLU(inplace=True),
            ]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.body(x)
        return result


class UNetEncoder(VolumeEncoder):
    """The contracting half of a U-Net: the encoder of Bi-JROS, and the one that RRL-MedSAM distils."""

    def __init__(self, inputs: int = 1, channels: Sequence[int] = (32, 64, 128, 256)) -> None:
        super().__init__()
        self.inputs, self.channels = inputs, tuple(channels)
        self.strides = tuple((2**level,) * 3 for level in range(len(self.channels)))
        widths = (inputs, *self.channels)
        self.stages = nn.ModuleList(
            DoubleConv(before, after) for before, after in zip(widths, self.channels, strict=False)
        )

    def forward(self, volume_BCZYX: Tensor) -> Maps:
        maps: Maps = []
        for stage in self.stages:
            x = F.max_pool3d(maps[-1], 2) if maps else volume_BCZYX
            maps.append(run(stage, x, recompute=self.recompute))
        return maps


class _Up(nn.Module):
    """Upsamples by the factor between two levels, and merges the finer level's maps."""

    def __init__(self, inputs: int, outputs: int, skipped: int, factor: Voxel, *, skip_first: bool) -> None:
        super().__init__()
        self.skip_first = skip_first
        self.up = nn.ConvTranspose3d(inputs, outputs, factor, factor)
        self.conv = DoubleConv(outputs + skipped, outputs)

    def forward(self, x: Tensor, *skipped: Tensor) -> Tensor:
        risen = self.up(x)
        parts = [*skipped, risen] if self.skip_first else [risen, *skipped]
        result: Tensor = self.conv(torch.cat(parts, dim=1))
        return result


class PyramidDecoder(nn.Module):
    """Decodes a pyramid of feature maps, of one image or of a pair, to the resolution of the finest.

    Args:
        encoder: gives channels and strides; the finest map has the resolution of the volume.
        images: 1, or 2 for a pair, whose maps are concatenated.
        outputs: channels of the answer.
        skip_first: whether skipped maps come before the up-sampled one when they are concatenated.

    `recompute` is as in `VolumeEncoder`.
    """

    recompute: bool = False

    def __init__(
        self, encoder: VolumeEncoder, *, images: int, outputs: int, kernel: int, skip_first: bool
    ) -> None:
        super().__init__()
        widths, strides = encoder.channels, encoder.strides
        inputs = images * widths[-1]
        ups = []
        for level in range(len(widths) - 2, -1, -1):
            z, y, x = (
                coarse // fine for coarse, fine in zip(strides[level + 1], strides[level], strict=True)
            )
            ups.append(_Up(inputs, widths[level], images * widths[level], (z, y, x), skip_first=skip_first))
            inputs = widths[level]
        self.ups = nn.ModuleList(ups)
        self.head = nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2)

    def features(self, *maps: Maps) -> Tensor:
        """Return what the head sees, at full resolution."""
        x = torch.cat([levels[-1] for levels in maps], dim=1)
        for number, step in enumerate(self.ups):
            skipped = [levels[-2 - number] for levels in maps]
            x = run(step, x, *skipped, recompute=self.recompute)
        return x

    def forward(self, *maps: Maps) -> Tensor:
        answer: Tensor = self.head(self.features(*maps))
        return answer


class JointNetwork(nn.Module):
    """Encoder, registration decoder and segmentation decoder.

    Volumes of any size enter: they are padded with their border to what the encoder takes, and the answers
    are cut back.
    """

    def __init__(self, encoder: VolumeEncoder, registration: nn.Module, segmentation: nn.Module) -> None:
        super().__init__()
        self.encoder, self.registration, self.segmentation = encoder, registration, segmentation

    def encode(self, volume_BCZYX: Tensor) -> Maps:
        """Return the encoder's maps of the padded volume."""
        size = volume_BCZYX.shape[-3:]
        after = [new - old for new, old in zip(self.encoder.padded(size), size, strict=True)]
        if any(after):
            margins = [margin for extra in reversed(after) for margin in (extra // 2, extra - extra // 2)]
            volume_BCZYX = F.pad(volume_BCZYX, margins, mode="replicate")
        maps: Maps = self.encoder(volume_BCZYX)
        return maps

    def flow(self, source: Maps, target: Maps, size: Sequence[int]) -> Tensor:
        """Return the flow (B, 3, *size), float32, in voxels, that warps the source onto the target."""
        return self._cut(self.registration(source, target), size)

    def segment(self, maps: Maps, size: Sequence[int]) -> Tensor:
        """Return logits (B, K, *size), float32."""
        return self._cut(self.segmentation(maps), size)

    def _cut(self, answer: Tensor, size: Sequence[int]) -> Tensor:
        if tuple(answer.shape[-3:]) != tuple(size):
            for axis, side in zip((-3, -2, -1), size, strict=True):
                answer = answer.narrow(axis, (answer.shape[axis] - side) // 2, side)
        return answer.to(torch.promote_types(answer.dtype, torch.float32))


_PARTS = {"fea_extractor": "encoder", "Reg_Decoder": "registration", "Seg_Decoder": "segmentation"}
_RENAMES = (
    (r"^inc\.double_conv\.", "stages.0.body."),
    (r"^down(\d)\.maxpool_conv\.1\.double_conv\.", r"stages.\1.body."),
    (r"^decoder\.up(\d)\.up\.", lambda found: f"ups.{int(found[1]) - 1}.up."),
    (r"^decoder\.up(\d)\.conv\.double_conv\.", lambda found: f"ups.{int(found[1]) - 1}.conv.body."),
    (r"^(flow|outc\.conv)\.", "head."),
)


def from_published(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of a published file of Bi-JROS the names of a `JointNetwork`.

    Prefixes (``module.``, ``upper.``) are taken off; a file with the encoder's bare names is an encoder.
    """
    renamed = {}
    for name, tensor in weights.items():
        name = name.removeprefix("module.").removeprefix("upper.")
        part, _, rest = name.partition(".")
        if part not in _PARTS and re.match(r"inc\.|down\d\.", name):
            part, rest = "fea_extractor", name
        if part in _PARTS:
            for pattern, replacement in _RENAMES:
                rest = re.sub(pattern, replacement, rest)
            renamed[f"{_PARTS[part]}.{rest}"] = tensor
    return renamed


def load_published_encoder(encoder: UNetEncoder, weights: Mapping[str, Tensor], *, where: str) -> int:
    """Load the encoder of a published file, strictly; decoders in it are left out.

    Returns: the number of tensors that were loaded, counters of batches apart.
    Raises: CheckpointError if there is no encoder in it, or tensors are missing, unknown or of another shape.
    """
    prefix = "encoder."
    found = {
        name.removeprefix(prefix): tensor
        for name, tensor in from_published(weights).items()
        if name.startswith(prefix)
    }
    if not found:
        named = ", ".join(list(weights)[:4]) or "nothing"
        raise CheckpointError(
            f"{where}: holds no encoder of Bi-JROS ('fea_extractor.*'), but {named}. Choose another file, or "
            "train with '--encoder-weights none'."
        )
    own = encoder.state_dict()
    counters = {name: tensor for name, tensor in own.items() if name.endswith("num_batches_tracked")}
    restore(encoder, {**counters, **found}, where=where)
    return len(found.keys() - counters.keys())
