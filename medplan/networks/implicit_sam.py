"""Segment Anything with adapters and a decoder that answers at any resolution (I-MedSAM).

Image encoder, prompt encoder and the trunk of the mask decoder are those of the package segment-anything;
what is added lies around them. Paper: Wei et al. 2024, arXiv:2311.17081. Released code: ucwxb/I-MedSAM (no
licence; read, not copied).

Shapes: B images, C channels, Y X pixels, D width of the tokens, h w = Y / 16, X / 16.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from medplan.checkpoint import restore
from medplan.errors import CheckpointError, MethodError
from medplan.networks.blocks import initialise
from medplan.networks.frequency_adapter import FrequencyAdapter, spectrum
from medplan.networks.implicit import CoordinateCode, ImplicitDecoder, Uncertainty, Widths
from medplan.networks.lora import adapt_attention
from medplan.networks.released_imedsam import is_released, released_state
from medplan.networks.sam import (
    OUTPUT_CHANNELS,
    SAM_VARIANTS,
    TOKEN_PIXELS,
    ConvolutionalStem,
    build_sam_image_encoder,
    load_sam_image_encoder,
    pyramid,
)
from medplan.networks.unet import UNetDecoder
from medplan.samples.box_prompts import coverage

__all__ = ["SMALL", "AdaptedEncoder", "ImplicitSam", "Maps", "as_sam_sees", "build_imedsam"]

STRENGTH = 0.5
"""Factor of the frequency tokens where they are added to the image's."""
MAP_CHANNELS = OUTPUT_CHANNELS // 8
"""Channels of the upscaled map that SAM's mask decoder multiplies with its mask tokens."""
SMALL = Widths(coarse=(128, 64), fine=(64, 64), head=32, features=32)
"""Of the decoder behind the tiny encoder."""
Maps = tuple[Tensor, ...]
"""What an encoder says of images: their embedding (B, 256, h, w), then finer maps if it has any."""
_PROMPTED = ("prompt_encoder.", "mask_decoder.")
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def as_sam_sees(image_BCYX: Tensor, *, normalised: bool = True) -> Tensor:
    """Return image_B3YX of images of one to three channels with values in [0, 1].

    One channel is repeated, of two the mean is the third.

    Args:
        normalised: shift and scale as SAM was trained (mean and deviation of ImageNet's pixels).
    """
    if image_BCYX.shape[1] == 2:
        image_BCYX = torch.cat([image_BCYX, image_BCYX.mean(1, keepdim=True)], dim=1)
    image_B3YX = image_BCYX.expand(-1, 3, -1, -1)
    if not normalised:
        return image_B3YX
    mean, std = (
        torch.tensor(values).to(image_B3YX, non_blocking=True)[:, None, None] / 255
        for values in (_MEAN, _STD)
    )
    return (image_B3YX - mean) / std


class AdaptedEncoder(nn.Module):
    """A SAM image encoder with low-rank updates of its attention, and frequency tokens that pass beside it.

    Args:
        variant: of SAM.
        image_size: pixels per side, a multiple of 16.
        rank: of the updates; 0 leaves them out.
        hidden: width inside the frequency adapters; 0 leaves the frequency branch out.
        compat: see `spectrum`.
    """

    def __init__(
        self,
        variant: str,
        image_size: int,
        *,
        rank: int = 4,
        hidden: int = 4,
        compat: bool = False,
    ) -> None:
        super().__init__()
        self.variant, self.image_size, self.compat = variant, image_size, compat
        self.vit = build_sam_image_encoder(variant, image_size)
        self.attention = adapt_attention(self.vit, rank) if rank else []
        width, depth = SAM_VARIANTS[variant].width, SAM_VARIANTS[variant].depth
        self.frequency = nn.ModuleList(FrequencyAdapter(width, hidden) for _ in range(depth if hidden else 0))

    def forward(self, image_B3YX: Tensor) -> Maps:
        """Return embedding_BChw, and the maps of stride 2, 4 and 8 where the encoder has such."""
        vit = cast(Any, self.vit)
        finer: list[Tensor] = []
        if isinstance(vit.patch_embed, ConvolutionalStem):
            *finer, coarsest_BDhw = vit.patch_embed.maps(image_B3YX)
            tokens_BhwD = vit.patch_embed.tokens(coarsest_BDhw) + vit.pos_embed
        else:
            tokens_BhwD = vit.patch_embed(image_B3YX) + vit.pos_embed
        waves_BhwD = None
        if len(self.frequency):
            picture = spectrum(image_B3YX, compat=self.compat).to(image_B3YX.dtype)
            waves_BhwD = vit.patch_embed(picture.expand(-1, 3, -1, -1)) + vit.pos_embed
        for number, block in enumerate(vit.blocks):
            # SAM counts positions on the default device and would send them over in every block.
            with tokens_BhwD.device:
                tokens_BhwD = block(tokens_BhwD)
            if waves_BhwD is not None:
                waves_BhwD = self.frequency[number](waves_BhwD)
                tokens_BhwD = tokens_BhwD + STRENGTH * waves_BhwD
        return (vit.neck(tokens_BhwD.permute(0, 3, 1, 2)), *finer)

    def added_parameters(self) -> list[nn.Parameter]:
        """Return what is to be trained beside frozen published weights."""
        adapters: list[Any] = [*self.attention, *self.frequency]
        return [parameter for adapter in adapters for parameter in adapter.added_parameters()]

    def load(self, weights: Mapping[str, Tensor], *, where: str) -> None:
        """Load a published SAM file's image encoder, strictly; position tables are resized."""
        plain = build_sam_image_encoder(self.variant, self.image_size)
        load_sam_image_encoder(plain, weights, where=where)
        own = self.vit.state_dict()
        around = ".attn.qkv.qkv." if self.attention else ".attn.qkv."
        own |= {name.replace(".attn.qkv.", around): value for name, value in plain.state_dict().items()}
        restore(self.vit, own, where=where)


class ImplicitSam(nn.Module):
    """Images and one box each to logits at any points.

    Args:
        encoder: of the images.
        decoder: answers at points; takes `MAP_CHANNELS` + 256 channels.
        from_nothing: help a network that no weights begin from. What two corners mean has to be learnt from
            far more images than what is inside and outside, so the box is also given as SAM's other kind of
            prompt, a filled mask; and if the encoder has finer maps, they take part in the upscaling.

    Source of the finer maps: SAM 2 (Ravi et al. 2024, arXiv:2408.00714), section 4.  Differs: they are mixed
    as in a U-Net, down to stride 2, rather than added at strides 8 and 4.
    """

    def __init__(
        self, encoder: AdaptedEncoder, decoder: ImplicitDecoder, *, from_nothing: bool = False
    ) -> None:
        super().__init__()
        from segment_anything.modeling.mask_decoder import MaskDecoder
        from segment_anything.modeling.prompt_encoder import PromptEncoder
        from segment_anything.modeling.transformer import TwoWayTransformer

        side = encoder.image_size
        tokens = side // TOKEN_PIXELS
        self.encoder, self.decoder, self.from_nothing = encoder, decoder, from_nothing
        self.prompt_encoder = PromptEncoder(
            embed_dim=OUTPUT_CHANNELS,
            image_embedding_size=(tokens, tokens),
            input_image_size=(side, side),
            mask_in_chans=16,
        )
        self.mask_decoder = MaskDecoder(
            transformer_dim=OUTPUT_CHANNELS,
            transformer=TwoWayTransformer(depth=2, embedding_dim=OUTPUT_CHANNELS, mlp_dim=2048, num_heads=8),
        )
        self.upscaling: UNetDecoder | None = None
        if from_nothing and isinstance(encoder.vit.patch_embed, ConvolutionalStem):
            shape = pyramid((*ConvolutionalStem.features, OUTPUT_CHANNELS))
            self.upscaling = UNetDecoder(shape, MAP_CHANNELS, 2)
            initialise(self.upscaling)

    def positional(self) -> Tensor:
        """Return the positional code of the token grid (256, h, w)."""
        with self._in_full_precision():
            code: Tensor = self.prompt_encoder.get_dense_pe()[0]
        return code

    def upscaled(self, maps: Maps, box_B4: Tensor) -> Tensor:
        """Let the images' embeddings and the boxes look at each other.

        Args:
            maps: from the encoder.
            box_B4: x0, y0, x1, y1 in pixels of the encoder's image; the box [0, 0, 1, 1] holds one pixel.

        Returns: map_B(32)(4h)(4w), or map_B(32)(8h)(8w) if finer maps take part.
        """
        decoder, (embedding_BChw, *finer) = self.mask_decoder, maps
        # Corner codes turn by hundreds of radians across the image: half precision would scatter them.
        with self._in_full_precision():
            # SAM names the first and the last pixel inside.
            pixels_B4 = box_B4 - torch.tensor((0.0, 0.0, 1.0, 1.0)).to(box_B4, non_blocking=True)
            corners_B2C, dense_BChw = self.prompt_encoder(
                points=None, boxes=pixels_B4, masks=self._masks(box_B4)
            )
            positional_1Chw = self.prompt_encoder.get_dense_pe()
        kind = embedding_BChw.dtype
        own_NC = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens_BNC = torch.cat([own_NC.expand(len(box_B4), -1, -1), corners_B2C.to(own_NC.dtype)], dim=1)
        _, image_BPC = decoder.transformer(
            embedding_BChw + dense_BChw.to(kind),
            positional_1Chw.to(kind).expand(len(box_B4), -1, -1, -1),
            tokens_BNC,
        )
        image_BChw = image_BPC.transpose(1, 2).reshape(embedding_BChw.shape)
        map_BCYX: Tensor
        if self.upscaling is None:
            map_BCYX = decoder.output_upscaling(image_BChw)
        else:
            map_BCYX = self.upscaling([*finer, image_BChw])[0]
        return map_BCYX

    def at_points(
        self,
        maps: Maps,
        box_B4: Tensor,
        shape: tuple[int, int],
        classes: Sequence[int],
        *,
        index_P: Tensor | None = None,
        depth_B: Tensor | None = None,
        openness: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Return coarse_BP and fine_BP, logits of one class and one box per image; see `ImplicitDecoder`."""
        answer: tuple[Tensor, Tensor] = self.decoder(
            self.upscaled(maps, box_B4), self.positional(), shape, classes,
            index_P=index_P, box_B4=self._in_units(box_B4), depth_B=depth_B, openness=openness,
        )  # fmt: skip
        return answer

    def answer(
        self,
        maps: Maps,
        box_4: Tensor,
        shape: tuple[int, int],
        of_class: int,
        *,
        depth: float = 0.0,
        openness: float = 1.0,
    ) -> Tensor:
        """Return logits of one image on a whole grid of any size, float32; see `ImplicitDecoder.answer`."""
        return self.decoder.answer(
            self.upscaled(maps, box_4[None]), self.positional(), shape, of_class,
            box_4=self._in_units(box_4), depth=depth, openness=openness,
        )  # fmt: skip

    def _in_units(self, box_B4: Tensor) -> Tensor:
        return 2 * box_B4 / self.encoder.image_size - 1

    def _masks(self, box_B4: Tensor) -> Tensor | None:
        if not self.from_nothing:
            return None
        side = self.encoder.image_size
        return coverage(box_B4, self.prompt_encoder.mask_input_size, (side, side))[:, None]

    def adapter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return what I-MedSAM trains beside frozen published weights, by part.

        Of the prompt encoder all parameters are counted, as its authors do, although those of points and
        masks get no gradient.
        """
        return {
            "encoder adapters": self.encoder.added_parameters(),
            "prompt encoder": list(self.prompt_encoder.parameters()),
            "upscaling": list(self.mask_decoder.output_upscaling.parameters()),
            "implicit decoder": list(self.decoder.parameters()),
        }

    def used_parameters(self) -> list[nn.Parameter]:
        """Return every parameter that an answer depends on: what is trained where there are no published
        weights.
        """
        idle = (
            "mask_decoder.output_hypernetworks_mlps.", "mask_decoder.iou_prediction_head.",
            "mask_decoder.transformer.final_attn_token_to_image.",
            "mask_decoder.transformer.norm_final_attn.",
            "prompt_encoder.no_mask_embed." if self.from_nothing else "prompt_encoder.mask_downscaling.",
            "prompt_encoder.not_a_point_embed.",
            "prompt_encoder.point_embeddings.0.", "prompt_encoder.point_embeddings.1.",
            *(() if self.upscaling is None else ("mask_decoder.output_upscaling.",)),
        )  # fmt: skip
        return [parameter for name, parameter in self.named_parameters() if not name.startswith(idle)]

    def load_published(self, weights: Mapping[str, Tensor], *, where: str) -> None:
        """Load a SAM file, and the checkpoint of I-MedSAM's authors if it lies beside it in the same mapping.

        Raises: CheckpointError if there is no SAM, or tensors do not fit; MethodError as `load_released`.
        """
        if not any(name.startswith("image_encoder.patch_embed") for name in weights):
            raise CheckpointError(
                f"{where}: holds no image encoder of SAM; expected a file such as sam_vit_b_01ec64.pth. "
                "The checkpoint of I-MedSAM's authors goes beside it: 'sam_vit_b_01ec64.pth+model_best.pth'."
            )
        if is_released(weights):
            self.encoder.load({k: v for k, v in weights.items() if ".freq_" not in k}, where=where)
            self.load_released(weights, where=where)
        else:
            self.load_sam(weights, where=where)

    def load_sam(self, weights: Mapping[str, Tensor], *, where: str) -> None:
        """Load a whole published SAM file, strictly.

        Raises: CheckpointError listing the tensors that are missing, unknown or of another shape.
        """
        self.encoder.load(weights, where=where)
        for prefix in _PROMPTED:
            part = self.get_submodule(prefix.rstrip("."))
            own = {
                name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)
            }
            restore(part, own, where=f"{where} ({prefix.rstrip('.')})")

    def load_released(self, weights: Mapping[str, Tensor], *, where: str) -> None:
        """Load the 308 tensors that I-MedSAM's authors released, strictly; the image encoder stays.

        Raises: MethodError if this network has another layout; CheckpointError listing the tensors.
        """
        if not self.decoder.code.compat:
            raise MethodError(
                f"{where}: the released weights of I-MedSAM expect the released layout; plan with '--set "
                "config.compat=true'."
            )
        state = {name: value for name, value in self.state_dict().items() if name.startswith("encoder.vit.")}
        state = {name: value for name, value in state.items() if not _is_added(name)}
        restore(self, state | released_state(weights, where=where), where=where)

    def _in_full_precision(self) -> AbstractContextManager[Any]:
        device: torch.device = self.mask_decoder.iou_token.weight.device
        # Tensors without values know no autocast.
        return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _is_added(name: str) -> bool:
    return any(part in name for part in (".qkv.gate.", ".qkv.query_", ".qkv.value_"))


def build_imedsam(
    variant: str,
    image_size: int,
    num_classes: int,
    *,
    rank: int = 4,
    hidden: int = 4,
    compat: bool = False,
    from_nothing: bool = False,
    dropout: float = 0.5,
    passes: int = 2,
    share: float = 0.125,
    uncertainty: Uncertainty = "mc",
) -> ImplicitSam:
    """Return the whole network; see `AdaptedEncoder`, `ImplicitDecoder` and `ImplicitSam`.

    The highest frequency of the coordinates is what the grid resolves, 10 in `compat`; the tiny encoder has a
    small decoder.
    """
    encoder = AdaptedEncoder(variant, image_size, rank=rank, hidden=hidden, compat=compat)
    decoder = ImplicitDecoder(
        num_classes,
        MAP_CHANNELS + OUTPUT_CHANNELS,
        code=CoordinateCode(max_exponent=10.0 if compat else math.log2(image_size / 4), compat=compat),
        widths=SMALL if variant == "tiny" else None,
        knows_box=from_nothing,
        dropout=dropout,
        passes=passes,
        share=share,
        uncertainty=uncertainty,
    )
    return ImplicitSam(encoder, decoder, from_nothing=from_nothing)
