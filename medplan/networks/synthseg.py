"""The contracting path of SynthSeg's U-Net, and the way from its published Keras weights.

Paper: Billot et al. 2023, arXiv:2107.09559. Official code: Apache-2.0; read, not copied.
"""

import re
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from medplan.checkpoint import restore
from medplan.errors import CheckpointError
from medplan.networks.joint import Maps, VolumeEncoder
from medplan.networks.recompute import run

__all__ = ["SynthSegEncoder", "load_synthseg_encoder"]

KERAS_EPSILON = 1e-3


class _Level(nn.Module):
    """Two convolutions with ELU; what is pooled for the next level passes one batch norm, the skip does
    not.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv3d(width, outputs, 3, padding=1) for width in (inputs, outputs))
        self.norm = nn.BatchNorm3d(outputs, eps=KERAS_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.elu(conv(x))
        return x

    def normalised(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(x)
        return result


class SynthSegEncoder(VolumeEncoder):
    """Maps of 24, 48, 96, 192 and 384 channels at strides 1 to 16, each taken before the batch norm.

    Differs: the coarsest map passes its batch norm, as it does on its way into the original's decoder.
    """

    def __init__(self, inputs: int = 1, channels: Sequence[int] = (24, 48, 96, 192, 384)) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.strides = tuple((2**level,) * 3 for level in range(len(self.channels)))
        widths = (inputs, *self.channels)
        self.levels = nn.ModuleList(
            _Level(before, after) for before, after in zip(widths, self.channels, strict=False)
        )

    def forward(self, volume_BCZYX: Tensor) -> Maps:
        maps, x = [], volume_BCZYX
        for number, level in enumerate(self.levels):
            assert isinstance(level, _Level)
            skip = run(level, x if number == 0 else F.max_pool3d(x, 2), recompute=self.recompute)
            x = level.normalised(skip)
            maps.append(skip if number + 1 < len(self.levels) else x)
        return maps


_BATCH_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def load_synthseg_encoder(encoder: SynthSegEncoder, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Load the contracting path of a published SynthSeg file, strictly; the expanding path is left out.

    Args:
        weights: tensors by the names of the Keras file (``unet_conv_downarm_0_0/.../kernel:0``), kernels
            (3, 3, 3, in, out); or a state of this encoder.
        where: named in errors.

    Raises: CheckpointError listing the tensors that are missing, unknown or of another shape.
    """
    if "levels.0.convs.0.weight" in weights:
        restore(encoder, weights, where=where)
        return
    found: dict[str, Tensor] = {
        name: tensor for name, tensor in encoder.state_dict().items() if name.endswith("num_batches_tracked")
    }
    for name, tensor in weights.items():
        conv = re.search(r"unet_conv_downarm_(\d+)_(\d+)/.*?(kernel|bias)(:0)?$", name)
        norm = re.search(r"unet_bn_down_(\d+)/.*?(gamma|beta|moving_mean|moving_variance)(:0)?$", name)
        if conv:
            kind = "weight" if conv[3] == "kernel" else "bias"
            value = tensor.permute(4, 3, 0, 1, 2).contiguous() if tensor.ndim == 5 else tensor
            found[f"levels.{conv[1]}.convs.{conv[2]}.{kind}"] = value
        elif norm:
            found[f"levels.{norm[1]}.norm.{_BATCH_NORM[norm[2]]}"] = tensor
    if not any(name.endswith("weight") for name in found):
        named = ", ".join(list(weights)[:4]) or "nothing"
        raise CheckpointError(
            f"{where}: holds no SynthSeg encoder ('unet_conv_downarm_*'), but {named}; expected a file such "
            "as synthseg_1.0.h5."
        )
    restore(encoder, found, where=where)
