"""RRL-MedSAM: a light encoder that learns from SAM and from registration at once.

Paper: Wang et al. 2025, arXiv:2504.20501. There is no code; layers and weights beyond the abstract are our
reconstruction.

Two encoders of equal shape: a general one imitates SAM's features, a medical one serves joint registration
and segmentation. Each takes over a little of the other after every step; the general branch's coarse answer
prompts the medical branch's decoder.

Shapes: B batch, C channels, D features, K classes, Z Y X voxels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medplan.errors import MethodError
from medplan.networks.joint import Maps, PyramidDecoder, UNetEncoder, VolumeEncoder
from medplan.networks.pairing import Pair, Pairing
from medplan.networks.slices import SliceEncoder
from medplan.networks.warp import warp

__all__ = ["Distillation", "PromptedDecoder", "exchange"]


class PromptedDecoder(nn.Module):
    """A segmentation decoder whose skips are shifted by a coarse answer; at first the shift is zero."""

    def __init__(self, encoder: VolumeEncoder, num_outputs: int) -> None:
        super().__init__()
        self.decoder = PyramidDecoder(encoder, images=1, outputs=num_outputs, kernel=1, skip_first=True)
        self.prompts = nn.ModuleList(nn.Conv3d(num_outputs, width, 1) for width in encoder.channels[:-1])
        for prompt in self.prompts:
            nn.init.zeros_(prompt.weight)  # type: ignore[arg-type]
            nn.init.zeros_(prompt.bias)  # type: ignore[arg-type]

    def forward(self, maps: Maps, coarse_BKZYX: Tensor) -> Tensor:
        prompted = []
        for features, prompt in zip(maps, self.prompts, strict=False):
            fitting = F.adaptive_avg_pool3d(coarse_BKZYX, list(features.shape[-3:]))  # type: ignore[arg-type]
            prompted.append(features + prompt(fitting))
        answer: Tensor = self.decoder([*prompted, maps[-1]])
        return answer


class Distillation(nn.Module):
    """What RRL-MedSAM trains besides the medical encoder: general encoder, its decoder, prompted decoder.

    Args:
        medical: the encoder that is kept; its coarsest map must have SAM's 256 channels per input channel.
        teacher: SAM, frozen.
    """

    def __init__(self, medical: UNetEncoder, teacher: SliceEncoder, num_outputs: int) -> None:
        super().__init__()
        if medical.channels[-1] != teacher.channels[0]:
            raise MethodError(
                f"The coarsest map has {medical.channels[-1]} channels, but SAM gives {teacher.channels[0]}; "
                "set the last of 'config.channels' to that."
            )
        self.teacher = teacher
        self.general = UNetEncoder(medical.inputs, medical.channels)
        self.coarse = PyramidDecoder(medical, images=1, outputs=num_outputs, kernel=1, skip_first=True)
        self.prompted = PromptedDecoder(medical, num_outputs)

    def students(self, phase: str) -> list[nn.Parameter]:
        """Return the parameters that are trained in a phase: never the teacher's."""
        parts = (self.general,) if phase == "distil" else (self.general, self.coarse, self.prompted)
        return [parameter for part in parts for parameter in part.parameters()]

    def terms(self, pair: Pair, pairing: Pairing, *, is_mutual: bool) -> dict[str, Tensor]:
        """Return the losses besides registration: imitation, and in the second phase both answers.

        The registered label of the atlas is what both answers should be.
        """
        maps = self.general(pair.image)
        terms = {"imitation": self.imitation(maps, pair.image)}
        if is_mutual:
            label = warp(pair.members, pair.to_image)
            coarse = pairing.as_probabilities(self.coarse(maps).float())
            final = pairing.as_probabilities(self.prompted(pair.image_maps, coarse).float())
            terms |= {"coarse": pairing.agree(label, coarse), "final": pairing.agree(label, final)}
        return terms

    @torch.no_grad()
    def teach(self, image_BCZYX: Tensor, size: Sequence[int]) -> Tensor:
        """Return SAM's features of an image at the coarsest level, each channel standardised.

        Returns: (B, D, *size), averaged along z and interpolated in the plane.
        """
        self.teacher.eval()
        plane = self.teacher.padded(image_BCZYX.shape[-3:])[1:]
        padded = F.interpolate(image_BCZYX, size=(image_BCZYX.shape[2], *plane), mode="trilinear")
        features = self.teacher(padded)[0]
        features = F.adaptive_avg_pool3d(features, (size[0], *features.shape[-2:]))
        features = F.interpolate(features, size=tuple(size), mode="trilinear", align_corners=False)
        spread, mean = torch.std_mean(features, dim=(2, 3, 4), keepdim=True, correction=0)
        return (features - mean) / (spread + 1e-6)

    def imitation(self, maps: Maps, image_BCZYX: Tensor) -> Tensor:
        """Return the mean squared distance of the general encoder's coarsest map from SAM's."""
        return F.mse_loss(maps[-1].float(), self.teach(image_BCZYX, maps[-1].shape[-3:]).float())


@torch.no_grad()
def exchange(general: nn.Module, medical: nn.Module, *, keep: float) -> Tensor:
    """Let two networks of equal shape take over a little of each other, the general one first.

    ``general <- keep general + (1 - keep) medical``, then the same the other way with the new general one;
    running statistics too, counters are left.

    Returns: the distance of the weights before.
    Source: arXiv:2504.20501, keep = 0.99.
    """
    ones, others = (
        [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
        for network in (general, medical)
    )
    distance = nn.utils.get_total_norm(torch._foreach_sub(ones, others))
    torch._foreach_lerp_(ones, others, 1 - keep)
    torch._foreach_lerp_(others, ones, 1 - keep)
    return distance
