"""SegFormer with messengers behind its stages.

Source: Zhang, Wang, Li, "S&D Messenger", arXiv:2407.07763, and the released code (read, not copied).

Shapes: B batch (labelled samples first), C channels, K outputs, Z Y X voxels (Z = 1).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from medplan.networks.messenger import ChannelAttention, Messengers
from medplan.networks.mit import MixTransformer
from medplan.networks.mlp_head import MlpHead

__all__ = ["MessengerSegFormer"]


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
