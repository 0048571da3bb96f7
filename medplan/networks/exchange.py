"""Builds the networks that exchange features between labelled and unlabelled samples, as a plan asks."""

from dataclasses import dataclass
from typing import Literal

from medplan.errors import MethodError, did_you_mean
from medplan.networks.messenger import Memory, Messengers
from medplan.networks.messenger_unet import MessengerUNet
from medplan.networks.mit import SIZES
from medplan.networks.segformer import MessengerSegFormer
from medplan.plan.schema import Pyramid

__all__ = ["Exchange", "exchange_network"]


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Where and how features are exchanged.

    Attributes:
        messenger: ``stage`` behind stages of the encoder, ``block`` inside the last one's blocks, ``off``.
        stages: counted from 1 at the finest or -1 at the coarsest, for ``stage``.
        memory: of `Messenger`.
        alpha: of `ChannelAttention`, for ``block``.
    """

    messenger: Literal["stage", "block", "off"] = "stage"
    stages: tuple[int, ...] = (-1,)
    memory: Memory = "batch"
    alpha: float = 0.5

    def messengers(self, widths: tuple[int, ...]) -> Messengers:
        """Make the messengers for an encoder with these channels, finest stage first."""
        stages = self.stages if self.messenger == "stage" else ()
        return Messengers.behind(stages, widths, memory=self.memory)


def exchange_network(
    encoder: str,
    pyramid: Pyramid | None,
    dims: Literal[2, 3],
    *,
    num_channels: int,
    num_outputs: int,
    exchange: Exchange,
) -> MessengerUNet | MessengerSegFormer:
    """Build the U-Net of the pyramid (``unet``) or a SegFormer (``mit_b0`` to ``mit_b5``, slices only).

    Raises: MethodError if the choices do not fit together.
    """
    if encoder == "unet":
        if pyramid is None:
            raise MethodError("the encoder 'unet' needs a 'pyramid' in the plan; plan it again.")
        if exchange.messenger == "block":
            raise MethodError(
                "messenger 'block' sits inside the blocks of a Mix Transformer; choose '--encoder mit_b0' to "
                "'mit_b5', or messenger 'stage'."
            )
        return MessengerUNet(num_channels, pyramid, num_outputs, dims, exchange.messengers(pyramid.features))
    if encoder not in SIZES:
        known = ", ".join(("unet", *SIZES))
        raise MethodError(
            f"there is no encoder '{encoder}'{did_you_mean(encoder, SIZES)}; choose from {known}."
        )
    if dims != 2:
        raise MethodError(f"the encoder '{encoder}' sees slices; plan with '--dims 2' or '--encoder unet'.")
    return MessengerSegFormer.make(
        encoder,
        num_channels=num_channels,
        num_outputs=num_outputs,
        messengers=exchange.messengers(SIZES[encoder].widths),
        alpha=exchange.alpha if exchange.messenger == "block" else None,
    )
