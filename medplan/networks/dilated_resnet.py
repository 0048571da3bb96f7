"""ResNet with bottlenecks whose output stride is chosen when it runs, and the way from published weights.

Source: He et al. 2016, arXiv:1512.03385; stride on the 3 x 3 convolution and dilated last stages as in
torchvision's ResNet, whose tensor names these are. Own code.
"""

# Shapes: B batch, C channels, Y X pixels.

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medplan.checkpoint import restore
from medplan.errors import CheckpointError

__all__ = ["SIZES", "DilatedResNet", "FewShotEncoder", "OutputStride", "ResNetSize", "load_published"]

OutputStride = Literal[8, 16, 32]

EXPANSION = 4


@dataclass(frozen=True, kw_only=True)
class ResNetSize:
    """Bottlenecks per stage, channels inside the first stage's, and channels of the few-shot features."""

    blocks: tuple[int, int, int, int]
    width: int
    features: int

    @property
    def out_channels(self) -> int:
        return self.width * 8 * EXPANSION


SIZES: Mapping[str, ResNetSize] = {
    "resnet101": ResNetSize(blocks=(3, 4, 23, 3), width=64, features=256),
    "resnet50": ResNetSize(blocks=(3, 4, 6, 3), width=64, features=256),
    "small": ResNetSize(blocks=(2, 2, 2, 2), width=24, features=128),
    "tiny": ResNetSize(blocks=(1, 1, 1, 1), width=8, features=32),
}


class DilatedResNet(nn.Module):
    """Maps (B, C, Y, X) to (B, `size.out_channels`, Y / s, X / s), s being the output stride.

    The weights do not depend on the stride: a stage that does not stride dilates instead.
    """

    def __init__(self, size: ResNetSize, *, in_channels: int = 3) -> None:
        super().__init__()
        self.size = size
        self.conv1 = nn.Conv2d(in_channels, size.width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(size.width)
        before = size.width
        for number, blocks in enumerate(size.blocks):
            inner = size.width * 2**number
            stage = []
            for block in range(blocks):
                strides = block == 0 and number > 0
                stage.append(_Bottleneck(before, inner, strides=strides, projects=block == 0))
                before = inner * EXPANSION
            self.add_module(f"layer{number + 1}", nn.ModuleList(stage))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image_BCYX: Tensor, output_stride: OutputStride = 8) -> Tensor:
        return self.maps(image_BCYX, output_stride)[-1]

    def maps(self, image_BCYX: Tensor, output_stride: OutputStride = 8) -> list[Tensor]:
        """Return the maps of the four stages, finest first."""
        features = F.relu(self.bn1(self.conv1(image_BCYX)))
        features = F.max_pool2d(features, 3, 2, 1)
        found, stride, dilation = [], 4, 1
        for number in range(4):
            step = 1 if number == 0 else 2
            first = dilation
            if stride * step > output_stride:
                dilation, step = dilation * step, 1
            stride *= step
            for index, block in enumerate(self.get_submodule(f"layer{number + 1}").children()):
                block_step = step if index == 0 else 1
                features = block(features, block_step, first if index == 0 else dilation)
            found.append(features)
        return found


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, inner: int, *, strides: bool, projects: bool) -> None:
        super().__init__()
        outputs = inner * EXPANSION
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, 2 if strides else 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if projects:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, 2 if strides else 1, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor, stride: int, dilation: int) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = F.conv2d(inner, self.conv2.weight, None, stride, dilation, dilation)
        inner = self.bn3(self.conv3(F.relu(self.bn2(inner))))
        shortcut = x
        if self.downsample is not None:
            projection, norm = self.downsample.children()
            assert isinstance(projection, nn.Conv2d)
            shortcut = norm(F.conv2d(x, projection.weight, None, stride))
        return F.relu(inner + shortcut)


class FewShotEncoder(nn.Module):
    """Backbone at output stride 8, and a 1 x 1 convolution without bias to the features that are compared.

    Pictures (B, C, Y, X) of any size give (B, `size.features`, Y / 8, X / 8).
    """

    stride = 8

    def __init__(self, size: ResNetSize, *, in_channels: int = 3) -> None:
        super().__init__()
        self.backbone = DilatedResNet(size, in_channels=in_channels)
        self.localconv = nn.Conv2d(size.out_channels, size.features, 1, bias=False)

    def forward(self, image_BCYX: Tensor) -> Tensor:
        features: Tensor = self.localconv(self.backbone(image_BCYX, 8))
        return features


# In the order in which they are looked for. A file of a whole run names its query encoder before others.
_PREFIXES = (
    "encoder.backbone.",  # this project, and DenseMP's few-shot network
    "module.encoder_q.0.",  # DenseCL in training
    "encoder_q.0.",
    "module.encoder_q.",  # MoCo
    "encoder_q.",
    "module.backbone.",
    "backbone.",  # DenseCL and other OpenSelfSup models
    "module.",
    "",  # torchvision, and backbones that were cut out
)
_PARTS = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")


def load_published(encoder: FewShotEncoder, state: Mapping[str, Tensor], *, where: str) -> None:
    """Fill the backbone, and `localconv` where the file has one, from a weight file's contents.

    Understands torchvision, MoCo, DenseCL, DenseMP's few-shot network and this project's checkpoints. Heads
    and queues are left out; pictures of another number of channels get the mean of the first layer's.

    Raises: CheckpointError naming `where` if there is no ResNet in it, or one of another size.
    """
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}conv1.weight" in state), None)
    if prefix is None:
        raise CheckpointError(
            f"{where}: holds no ResNet ('conv1.weight', as torchvision, MoCo or DenseCL name it); "
            f"its first tensors are {', '.join(list(state)[:3]) or 'none'}."
        )
    found = {
        key.removeprefix(prefix): value
        for key, value in state.items()
        if key.startswith(prefix) and key.removeprefix(prefix).startswith(_PARTS)
    }
    own = encoder.backbone.state_dict()
    stem, channels = found["conv1.weight"], own["conv1.weight"].shape[1]
    if stem.ndim == 4 and stem.shape[1] != channels:
        scale = stem.shape[1] / channels
        found["conv1.weight"] = stem.mean(1, keepdim=True).expand(-1, channels, -1, -1) * scale
    for key, tensor in own.items():
        if key.endswith("num_batches_tracked"):
            found.setdefault(key, tensor)
    restore(encoder.backbone, found, where=where)
    for name in ("encoder.localconv.weight", "localconv.weight"):
        if name in state and state[name].shape == encoder.localconv.weight.shape:
            with torch.no_grad():
                encoder.localconv.weight.copy_(state[name])
            return
