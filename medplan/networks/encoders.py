"""The encoders that joint registration and segmentation can use, by name, and the network around one."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from medplan.networks.joint import (
    JointNetwork,
    PyramidDecoder,
    UNetEncoder,
    VolumeEncoder,
    load_published_encoder,
)
from medplan.networks.sam import TOKEN_PIXELS, load_sam_image_encoder
from medplan.networks.slices import SliceDecoder, SliceEncoder
from medplan.networks.synthseg import SynthSegEncoder, load_synthseg_encoder

__all__ = ["ENCODERS", "build_encoder", "build_network", "build_teacher", "load_encoder"]

ENCODERS = ("bijros", "rrl", "sam", "synthseg")


def build_encoder(
    name: str,
    *,
    inputs: int,
    patch_size: tuple[int, int, int],
    channels: Sequence[int],
    sam: str,
    slices_at_once: int,
) -> VolumeEncoder:
    """Return an encoder with random weights.

    Args:
        name: one of `ENCODERS`; ``rrl`` is the same network as ``bijros``, trained otherwise.
        patch_size: decides the size that SAM is built for.
        channels: of the U-Net encoder.
        sam: SAM's variant.
        slices_at_once: slices that SAM encodes in one pass.
    """
    if name == "sam":
        return build_teacher(inputs, patch_size, sam, slices_at_once)
    if name == "synthseg":
        return SynthSegEncoder(inputs)
    return UNetEncoder(inputs, channels)


def build_teacher(
    inputs: int, patch_size: tuple[int, int, int], variant: str, slices_at_once: int
) -> SliceEncoder:
    """Return SAM for the slices of a patch."""
    side = -(-max(patch_size[1:]) // TOKEN_PIXELS) * TOKEN_PIXELS
    return SliceEncoder(inputs, variant=variant, side=side, at_once=slices_at_once)


def build_network(encoder: VolumeEncoder, num_outputs: int, *, recompute: bool = False) -> JointNetwork:
    """Add the decoders that suit an encoder, with a flow that starts near zero.

    Args:
        recompute: spare memory in all three, see `VolumeEncoder`.
    """
    registration: SliceDecoder | PyramidDecoder
    segmentation: SliceDecoder | PyramidDecoder
    if len(encoder.channels) == 1:
        registration = SliceDecoder(encoder, images=2, outputs=3, kernel=3)
        segmentation = SliceDecoder(encoder, images=1, outputs=num_outputs, kernel=1)
    else:
        registration = PyramidDecoder(encoder, images=2, outputs=3, kernel=3, skip_first=False)
        segmentation = PyramidDecoder(encoder, images=1, outputs=num_outputs, kernel=1, skip_first=True)
        registration.recompute = segmentation.recompute = recompute
    encoder.recompute = recompute
    nn.init.normal_(registration.head.weight, std=1e-5)
    if registration.head.bias is not None:
        nn.init.zeros_(registration.head.bias)
    return JointNetwork(encoder, registration, segmentation)


def load_encoder(encoder: VolumeEncoder, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Load the published weights that belong to an encoder, strictly."""
    if isinstance(encoder, SliceEncoder):
        load_sam_image_encoder(encoder.vit, weights, where=where)
    elif isinstance(encoder, SynthSegEncoder):
        load_synthseg_encoder(encoder, weights, where=where)
    else:
        assert isinstance(encoder, UNetEncoder)
        load_published_encoder(encoder, weights, where=where)
