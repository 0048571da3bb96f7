"""The image encoder of Segment Anything, from the package segment-anything, for any image size.

The published encoders are built for 1024 pixels: their position tables have one entry per token, or per
distance between tokens. Built for another size the tables are shorter or longer, and published ones are
interpolated.

Paper: Kirillov et al. 2023, arXiv:2304.02643. Official code: Apache-2.0, used as a package.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from medplan.checkpoint import restore
from medplan.errors import CheckpointError, MethodError, did_you_mean
from medplan.networks.blocks import initialise
from medplan.networks.unet import UNetEncoder
from medplan.plan.schema import Pyramid

__all__ = [
    "SAM_FILES",
    "SAM_VARIANTS",
    "ConvolutionalStem",
    "SamVariant",
    "build_sam_image_encoder",
    "load_sam_image_encoder",
    "pyramid",
    "resize_position_tables",
    "variant_of",
]

SAM_FILES = {
    "vit_b": "sam_vit_b_01ec64.pth", "vit_l": "sam_vit_l_0b3195.pth", "vit_h": "sam_vit_h_4b8939.pth",
}  # fmt: skip
TOKEN_PIXELS = 16
OUTPUT_CHANNELS = 256
_PREFIX = "image_encoder."


@dataclass(frozen=True, kw_only=True)
class SamVariant:
    """Size of a Vision Transformer; blocks in `global_blocks` attend to the whole image, others to 14 x 14
    tokens.
    """

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    stem: bool = False


SAM_VARIANTS = {
    "vit_b": SamVariant(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
    "vit_l": SamVariant(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": SamVariant(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
    "tiny": SamVariant(width=128, depth=4, heads=4, global_blocks=(1, 3), stem=True),
}
"""The published sizes, and ``tiny``, which has no weights: for tests, and to learn from nothing."""


def variant_of(weights: str | None) -> str | None:
    """Return the variant that the name of a weight file tells, None where it tells none."""
    found = re.search(r"vit_[blh]", weights or "")
    return found[0] if found else None


def build_sam_image_encoder(variant: str, image_size: int) -> nn.Module:
    """Return an encoder (B, 3, S, S) -> (B, 256, S / 16, S / 16) with random weights.

    Its state has the published names without the prefix ``image_encoder.``; pixels enter as they are given.

    Args:
        variant: one of `SAM_VARIANTS`.
        image_size: S, a multiple of 16; the encoder takes images of no other size.

    Raises: MethodError if there is no such variant, or the size is not a multiple of 16.
    """
    if variant not in SAM_VARIANTS:
        known = ", ".join(SAM_VARIANTS)
        raise MethodError(
            f"There is no SAM encoder '{variant}'{did_you_mean(variant, SAM_VARIANTS)}; there are {known}."
        )
    if image_size < TOKEN_PIXELS or image_size % TOKEN_PIXELS:
        nearest = max(1, round(image_size / TOKEN_PIXELS)) * TOKEN_PIXELS
        raise MethodError(
            f"SAM takes images whose side is a multiple of {TOKEN_PIXELS}, not {image_size}; try {nearest}."
        )
    # Importing the package takes seconds, because it imports torchvision.
    from segment_anything.modeling.image_encoder import ImageEncoderViT

    size = SAM_VARIANTS[variant]
    encoder: nn.Module = ImageEncoderViT(
        img_size=image_size,
        patch_size=TOKEN_PIXELS,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.heads,
        out_chans=OUTPUT_CHANNELS,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=size.global_blocks,
    )
    if size.stem:
        encoder.patch_embed = ConvolutionalStem(size.width)
    return encoder


class ConvolutionalStem(nn.Module):
    """The package's U-Net encoder in place of SAM's one convolution of stride 16.

    Attributes:
        features: channels of its maps of stride 2, 4 and 8.
    """

    features = (24, 48, 96)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = UNetEncoder(3, pyramid((*self.features, width)), 2)
        self.last = nn.Conv2d(width, width, 1)
        initialise(self)

    def maps(self, image_B3YX: Tensor) -> list[Tensor]:
        """Return the maps of stride 2, 4, 8 and 16."""
        maps: list[Tensor] = self.encoder(image_B3YX)
        return maps

    def tokens(self, coarsest_BDhw: Tensor) -> Tensor:
        """Return tokens_BhwD from the map of stride 16."""
        tokens: Tensor = self.last(coarsest_BDhw)
        return tokens.permute(0, 2, 3, 1)

    def forward(self, image_B3YX: Tensor) -> Tensor:
        """Return tokens_BhwD."""
        return self.tokens(self.maps(image_B3YX)[-1])


def pyramid(features: tuple[int, ...]) -> Pyramid:
    """Return a flat pyramid of maps of stride 2, 4 and so on, with so many channels."""
    stages = len(features)
    return Pyramid(
        features=features,
        strides=((1, 2, 2),) * stages,
        kernels=((1, 3, 3),) * stages,
        blocks=(1,) * stages,
        decoder_blocks=(1,) * (stages - 1),
    )


def load_sam_image_encoder(encoder: nn.Module, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Load a published SAM file's image encoder, strictly; prompt encoder and mask decoder are left out.

    Args:
        encoder: from `build_sam_image_encoder`, of any size.
        weights: whole SAM, or the encoder alone, with or without the prefix ``image_encoder.``.
        where: named in errors.

    Raises: CheckpointError listing the tensors that are missing, unknown or of another shape.
    """
    has_prefix = any(name.startswith(_PREFIX) for name in weights)
    own = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in weights.items()
        if name.startswith(_PREFIX) or not has_prefix
    }
    if "pos_embed" not in own:
        raise CheckpointError(
            f"{where}: holds no SAM image encoder (no 'image_encoder.pos_embed'); expected a file such as "
            "sam_vit_b_01ec64.pth."
        )
    restore(encoder, resize_position_tables(own, encoder), where=where)


def resize_position_tables(weights: Mapping[str, Tensor], encoder: nn.Module) -> dict[str, Tensor]:
    """Interpolate position tables to the size that an encoder was built for; all else stays.

    Absolute positions (1, h, w, D) are resized bilinearly, relative ones (2 h - 1, D) linearly, each only
    where the sizes differ.
    """
    wanted = encoder.state_dict()
    resized = dict(weights)
    for name, tensor in weights.items():
        if name not in wanted or tensor.shape == wanted[name].shape:
            continue
        if name == "pos_embed" and tensor.ndim == 4:
            planes = tensor.float().permute(0, 3, 1, 2)
            height, width = wanted[name].shape[1:3]
            planes = F.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False)
            resized[name] = planes.permute(0, 2, 3, 1).to(tensor.dtype)
        elif name.endswith(("rel_pos_h", "rel_pos_w")) and tensor.ndim == 2:
            lines = tensor.float().T[None]
            lines = F.interpolate(lines, size=wanted[name].shape[0], mode="linear", align_corners=False)
            resized[name] = lines[0].T.to(tensor.dtype)
    return resized
