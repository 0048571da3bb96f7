"""An atlas and another image seen by a joint network: flows both ways, warped labels, objectives.

Paper: Bi-JROS, Fan et al., CVPR 2024. Official code (no licence file), which objectives and pseudo image are
from: read, not copied.

Shapes: B batch, C channels, K classes, Z Y X voxels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medplan.data.labels import LabelSpace
from medplan.learning.losses import balanced_cross_entropy
from medplan.learning.registration import agreement, field_quality, local_correlation, smoothness
from medplan.method import Volume
from medplan.networks.joint import JointNetwork, Maps, Voxel
from medplan.networks.warp import integrate, warp
from medplan.samples.cases import Case
from medplan.samples.pairs import beside
from medplan.samples.synthetic import synthesise

__all__ = ["Pair", "Pairing"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A pair of images and where each lies in the other.

    Attributes:
        atlas, image: (B, C, Z, Y, X).
        members: (B, K, Z, Y, X), whether a voxel of the atlas belongs to an output.
        image_maps: the encoder's maps of the image.
        to_image, to_atlas: flows that warp the atlas onto the image, and the image onto the atlas.
    """

    atlas: Tensor
    image: Tensor
    members: Tensor
    image_maps: Maps
    to_image: Tensor
    to_atlas: Tensor

    @property
    def size(self) -> Sequence[int]:
        return self.image.shape[-3:]


class Pairing(nn.Module):
    """A joint network, and what is computed with it on pairs.

    Args:
        diffeomorphic: the decoder's answer is a velocity field.
        window, compat: of the local correlation.
    """

    def __init__(
        self,
        network: JointNetwork,
        labels: LabelSpace,
        *,
        diffeomorphic: bool = False,
        window: int = 9,
        compat: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.labels = network, labels
        self.diffeomorphic, self.window, self.compat = diffeomorphic, window, compat
        # Row i holds which code belongs to output i; the first column is for voxels without annotation.
        rows = [[0.0, *map(float, row)] for row in labels.membership().tolist()]
        self.membership: Tensor
        self.register_buffer("membership", torch.tensor(rows), persistent=False)

    def register(
        self,
        batch: Mapping[str, Any],
        prefix: str = "",
        *,
        with_gradient: bool = False,
        both_ways: bool = True,
    ) -> Pair:
        """Encode both images and find the flows between them.

        Args:
            prefix: of the keys ``image``, ``label`` and ``unlabelled_image``.
            with_gradient: keep the encoder's graph.
            both_ways: find the flow from image to atlas too; else it is zero.
        """
        atlas, image = batch[f"{prefix}image"], batch[f"{prefix}unlabelled_image"]
        with torch.set_grad_enabled(with_gradient):
            atlas_maps, image_maps = self.network.encode(atlas), self.network.encode(image)
        size = image.shape[-3:]
        to_image = self.flow(atlas_maps, image_maps, size)
        to_atlas = self.flow(image_maps, atlas_maps, size) if both_ways else torch.zeros_like(to_image)
        return Pair(
            atlas=atlas,
            image=image,
            members=self.members(batch[f"{prefix}label"]).to(atlas.dtype),
            image_maps=image_maps,
            to_image=to_image,
            to_atlas=to_atlas,
        )

    def flow(self, source: Maps, target: Maps, size: Sequence[int]) -> Tensor:
        """Return the flow (B, 3, *size) in voxels that warps the source onto the target."""
        flow = self.network.flow(source, target, size)
        return integrate(flow) if self.diffeomorphic else flow

    def members(self, codes_BZYX: Tensor) -> Tensor:
        """Return (B, K, Z, Y, X): 1 where a voxel belongs to an output; all 0 without annotation."""
        return self.membership[:, codes_BZYX.long() + 1].movedim(0, 1)

    def probabilities(self, maps: Maps, size: Sequence[int]) -> Tensor:
        """Return what the segmentation decoder makes of an image's maps, (B, K, *size) in [0, 1]."""
        return self.as_probabilities(self.network.segment(maps, size))

    def as_probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(1) if self.labels.is_exclusive else logits.sigmoid()

    def as_logits(self, members: Tensor) -> Tensor:
        """Return logits (B, K, Z, Y, X) whose classes are those of warped memberships."""
        return members.clamp_min(1e-6).log() if self.labels.is_exclusive else members - 0.5

    def correlation(self, first: Tensor, second: Tensor) -> Tensor:
        return local_correlation(first, second, window=self.window, compat=self.compat)

    def one_way(self, pair: Pair) -> dict[str, Tensor]:
        """Return similarity and smoothness of the way from atlas to image."""
        warped = warp(pair.atlas, pair.to_image)
        return {"similarity": self.correlation(pair.image, warped), "smooth": smoothness(pair.to_image)}

    def both_ways(self, pair: Pair) -> dict[str, Tensor]:
        """Return similarity, smoothness and cycle: sums over both ways; the cycle in absolute intensities."""
        onto_image, onto_atlas = warp(pair.atlas, pair.to_image), warp(pair.image, pair.to_atlas)
        similarity = self.correlation(pair.image, onto_image) + self.correlation(pair.atlas, onto_atlas)
        there_and_back = (warp(onto_image, pair.to_atlas) - pair.atlas).abs().mean()
        back_and_there = (warp(onto_atlas, pair.to_image) - pair.image).abs().mean()
        return {
            "similarity": similarity,
            "smooth": smoothness(pair.to_image) + smoothness(pair.to_atlas),
            "cycle": there_and_back + back_and_there,
        }

    def pseudo_image(self, pair: Pair, blend_B1111: Tensor) -> Tensor:
        """Return ``(1 - a) round trip + a image``: the round trip is the image warped to the atlas and back.

        The way back takes nearest voxels, so that only the flow of the way there gets a gradient from here.
        """
        returned = warp(warp(pair.image, pair.to_atlas), pair.to_image, mode="nearest")
        return returned - blend_B1111.to(returned.dtype) * (returned - pair.image)

    def agree(self, target: Tensor, answer: Tensor) -> Tensor:
        """Return the agreement of an answer with a target, both (B, K, Z, Y, X) in [0, 1].

        Voxels without annotation do not count; those of regions count as outside, which looks the same.
        """
        if self.labels.ignore is not None and self.labels.is_exclusive:
            answer = answer * target.sum(1, keepdim=True)
        return agreement(target, answer)

    def consistency(self, pair: Pair, *, cross_entropy: float = 0.0) -> Tensor:
        """Return the agreement of the warped label and the segmentation of the image.

        Args:
            cross_entropy: see `teach`; it teaches segmentation, and registration nothing.
        """
        return self.teach(pair.image_maps, warp(pair.members, pair.to_image), cross_entropy=cross_entropy)

    def teach(self, maps: Maps, target: Tensor, *, cross_entropy: float = 0.0) -> Tensor:
        """Return the agreement of the segmentation of an image with a target (B, K, Z, Y, X) in [0, 1].

        Args:
            cross_entropy: weight of `balanced_cross_entropy`, which is added and takes the target as given.
        """
        logits = self.network.segment(maps, target.shape[-3:])
        loss = self.agree(target, self.as_probabilities(logits))
        if not cross_entropy:
            return loss
        logs = logits.log_softmax(1) if self.labels.is_exclusive else F.logsigmoid(logits)
        return loss + cross_entropy * balanced_cross_entropy(logs, target.detach())

    def drawn(self, target: Tensor, *, channels: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return an image (B, C, Z, Y, X) drawn from the likeliest classes of a target, and what it shows.

        Of regions those voxels have one grey that are inside equally many of them.
        """
        if self.labels.is_exclusive:
            codes = target.argmax(1)
            shown = F.one_hot(codes, target.shape[1]).movedim(-1, 1).to(target.dtype)
        else:
            shown = (target > 0.5).to(target.dtype)
            codes = shown.sum(1).long()
        num_greys = target.shape[1] + (not self.labels.is_exclusive)
        images = [synthesise(codes, num_greys=num_greys, generator=generator) for _ in range(channels)]
        return torch.cat(images, dim=1).to(target.dtype), shown

    def onto(
        self, patch: Tensor, case: Case, corner: Voxel, atlas: Case, flipped: Sequence[int] = ()
    ) -> Pair:
        """Register the atlas onto a patch (1, C, Z, Y, X) of a case.

        The part of the atlas is used that lies where the patch does, mirrored if the patch shows its case
        mirrored (see `Predictor`).
        """
        lower, from_end = beside(atlas, case, corner), [axis - 3 for axis in flipped]
        z, y, x = (low + size for low, size in zip(lower, patch.shape[-3:], strict=True))
        batch = {
            "image": torch.from_numpy(atlas.image(lower, (z, y, x))[None]).flip(from_end).to(patch),
            "label": torch.from_numpy(atlas.label(lower, (z, y, x))[None]).flip(from_end).to(patch.device),
            "unlabelled_image": patch,
        }
        return self.register(batch, both_ways=False)

    def describe(self, pair: Pair, inner: tuple[slice, slice, slice]) -> dict[str, Volume | float]:
        """Return the results of registration for a batch of one pair, without padding, and its quality.

        Args:
            inner: the part of the patch that the case fills.
        """

        def volume(tensor: Tensor, kind: Literal["logits", "image", "displacement"]) -> Volume:
            return Volume(array=tensor[0][(slice(None), *inner)].float().cpu().numpy(), kind=kind)

        warped = warp(pair.atlas, pair.to_image)
        return {
            "registered": volume(self.as_logits(warp(pair.members, pair.to_image)), "logits"),
            "flow": volume(pair.to_image, "displacement"),
            "atlas": volume(warped, "image"),
            "lncc_before": -float(self.correlation(pair.image, pair.atlas)),
            "lncc_after": -float(self.correlation(pair.image, warped)),
            **field_quality(pair.to_image[(slice(None), slice(None), *inner)]),
        }
