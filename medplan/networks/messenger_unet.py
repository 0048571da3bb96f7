"""The planned U-Net with messengers behind some of its encoder's stages, in two or three dimensions."""

from typing import Literal

from torch import Tensor

from medplan.networks.messenger import Messengers
from medplan.networks.unet import UNet
from medplan.plan.schema import Pyramid

__all__ = ["MessengerUNet"]


class MessengerUNet(UNet):
    """A `UNet` that learns at every resolution of its decoder.

    Args:
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
        super().__init__(num_channels, pyramid, num_outputs, dims, deep_supervision=True)
        self.messengers = messengers

    def forward(
        self, image_BCZYX: Tensor, num_labelled: int | None = None, *, only_labelled: bool = False
    ) -> tuple[Tensor, ...]:
        """Return logits as `UNet.forward` does.

        Args:
            num_labelled: number of leading labelled samples in training; None outside (see `Messenger`).
            only_labelled: decode the labelled samples only, where the others are not learned from.
        """
        maps = list(self.messengers(self.encode(image_BCZYX), num_labelled))
        if only_labelled:
            maps = [features[:num_labelled] for features in maps]
        return self.decode(maps)
