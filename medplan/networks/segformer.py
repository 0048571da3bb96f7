"""SegFormer with messengers behind its stages, and the key map of the released checkpoints.

Source: Zhang, Wang, Li, "S&D Messenger", arXiv:2407.07763, and the released code (read, not copied).

Shapes: B batch (labelled samples first), C channels, K outputs, Z Y X voxels (Z = 1).
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from medplan.networks.messenger import ChannelAttention, Messengers
from medplan.networks.mit import MixTransformer, from_published
from medplan.networks.mlp_head import MlpHead

__all__ = ["MessengerSegFormer", "messenger_from_published", "whole_from_published"]


class MessengerSegFormer(nn.Module):
    """Logits of slices of any size.

    Args:
        encoder: with three input channels for one-channel slices, which are repeated as published weights
            expect.
    """

    def __init__(self, encoder: MixTransformer, head: MlpHead, messengers: Messengers) -> None:
        super().__init__()
        self.encoder, self.messengers, self.decoder = encoder, messengers, head

    @classmethod
    def make(
        cls,
        size: str,
        *,
        num_channels: int,
        num_outputs: int,
        messengers: Messengers,
        drop_path: float = 0.1,
        alpha: float | None = None,
    ) -> "MessengerSegFormer":
        """Put the parts together.

        Args:
            size: a key of `medplan.networks.mit.SIZES`.
            num_channels: of the image; one is repeated to three.
            alpha: of `ChannelAttention` in the last stage's blocks; None keeps the ordinary attention.

        Raises: MethodError if there is no such encoder.
        """
        encoder = MixTransformer(
            size,
            in_channels=3 if num_channels == 1 else num_channels,
            drop_path=drop_path,
            last_attention=None
            if alpha is None
            else lambda width, heads: ChannelAttention(width, heads, alpha=alpha),
        )
        return cls(encoder, MlpHead(encoder.widths, num_outputs), messengers)

    def forward(
        self, image_BCZYX: Tensor, num_labelled: int | None = None, *, only_labelled: bool = False
    ) -> tuple[Tensor, ...]:
        """Return logits_BKZYX of the image's size, alone in a tuple.

        Args:
            num_labelled: number of leading labelled samples in training; None outside (see `Messenger`).
            only_labelled: decode the labelled samples only, where the others are not learned from.
        """
        slices = image_BCZYX.squeeze(2)
        if slices.shape[1] == 1:
            slices = slices.expand(-1, 3, -1, -1)
        maps = self.messengers(self.encoder(slices, num_labelled), num_labelled)
        if only_labelled:
            maps = tuple(features[:num_labelled] for features in maps)
        logits = F.interpolate(
            self.decoder(maps), size=slices.shape[2:], mode="bilinear", align_corners=False
        )
        return (logits.unsqueeze(2),)


_MESSENGER = {
    "map_in.0": "enter",
    "map_out.0": "leave",
    "attn_norm": "norm_before",
    "encoder_norm": "norm_after",
    "attn.query_u_u": "unlabelled.query",
    "attn.key_u_u": "unlabelled.key",
    "attn.value_u_u": "unlabelled.value",
    "attn.out_u": "unlabelled.output",
    "attn.query_l_u": "labelled.query",
    "attn.key_l_u": "labelled.key",
    "attn.value_l_u": "labelled.value",
    "attn.out_l": "labelled.output",
}
_HEAD = {
    "linear_c1.proj": "projections.0",
    "linear_c2.proj": "projections.1",
    "linear_c3.proj": "projections.2",
    "linear_c4.proj": "projections.3",
    "linear_fuse.conv": "fusion",
    "linear_fuse.bn": "norm",
    "linear_pred": "classifier",
}


def messenger_from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the released state dict of one messenger; 1x1 convolutions become linear layers.

    A name that is not known keeps its name, so that a strict load reports it.
    """
    renamed = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        flat = layer in ("map_in.0", "map_out.0") and kind == "weight"
        renamed[f"{_MESSENGER.get(layer, layer)}.{kind}"] = value.flatten(1) if flat else value
    return renamed


def whole_from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of a released network (``backbone.*``, ``framework.*``)."""
    renamed = {f"encoder.{name}": value for name, value in from_published(_part(state, "backbone.")).items()}
    for stage in range(4):
        part = messenger_from_published(_part(state, f"framework.u2l_module_{stage}."))
        renamed |= {f"messengers.{stage}.{name}": value for name, value in part.items()}
    for name, value in _part(state, "framework.decoder.").items():
        layer, _, kind = name.rpartition(".")
        renamed[f"decoder.{_HEAD.get(layer, layer)}.{kind}"] = value
    known = re.compile(r"(module\.)?(backbone\.|framework\.(u2l_module_[0-3]|decoder)\.)")
    return renamed | {name: value for name, value in state.items() if not known.match(name)}


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    stripped = {name.removeprefix("module."): value for name, value in state.items()}
    return {name.removeprefix(prefix): value for name, value in stripped.items() if name.startswith(prefix)}
