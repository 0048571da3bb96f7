"""The planned U-Net with messengers behind some of its encoder's stages, in two or three dimensions."""

from typing import Literal

from torch import Tensor, nn

from medplan.networks.blocks import initialise
from medplan.networks.messenger import Messengers
from medplan.networks.unet import UNetDecoder, UNetEncoder
from medplan.plan.schema import Pyramid

__all__ = ["MessengerUNet"]


class MessengerUNet(nn.Module):
    """Logits of patches (B, C, Z, Y, X), at every resolution of the decoder, finest first.

    Args:
        num_channels: C.
        pyramid: shape of the network.
        num_outputs: K.
        dims: 2 works on single slices (Z = 1).
        messengers: by number of the stage they follow, finest 0.
    """

    def __init__(
        self,
        num_channels: int,
        pyramid: Pyramid,
        num_outputs: int,
        dims: Literal[2, 3],
        messengers: Messengers,
    ) -> None:
        super().__init__()
        self.dims = dims
        self.encoder = UNetEncoder(num_channels, pyramid, dims)
        self.decoder = UNetDecoder(pyramid, num_outputs, dims, deep_supervision=True)
        initialise(self)
        self.messengers = messengers

    def forward(
        self, image_BCZYX: Tensor, num_labelled: int | None = None, *, only_labelled: bool = False
    ) -> tuple[Tensor, ...]:
        """Return logits_BKZYX, finest (the image's size) first; only that one outside training.

        Args:
            num_labelled: number of leading labelled samples in training; None outside (see `Messenger`).
            only_labelled: decode the labelled samples only, where the others are not learned from.
        """
        patch = image_BCZYX if self.dims == 3 else image_BCZYX.squeeze(2)
        maps = list(self.messengers(self.encoder(patch), num_labelled))
        if only_labelled:
            maps = [features[:num_labelled] for features in maps]
        return tuple(logits if self.dims == 3 else logits.unsqueeze(2) for logits in self.decoder(maps))
