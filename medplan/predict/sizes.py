"""Predictions of another size than their picture's."""

from dataclasses import replace

from medplan.errors import UsageError
from medplan.preprocess.geometry import Restoration

__all__ = ["at_size"]


def at_size(restoration: Restoration, size: tuple[int, int]) -> Restoration:
    """Return the way back to a grid of `size` (height, width) that covers the same picture.

    Raises: UsageError for volumes, whose grids are given by a spacing, and for sizes below 1.
    """
    if min(size) < 1:
        raise UsageError(f"--output-size: should be two positive numbers, height and width, found {size}.")
    native = restoration.native
    whole = restoration.lower == (0, 0, 0) and restoration.upper == native.shape
    if native.spacing_mm is not None or native.shape[0] != 1 or not whole:
        raise UsageError(
            "--output-size is for pictures; a label map of a volume lies on the grid of its image. Leave it "
            "out."
        )
    shape = (1, *size)
    return replace(restoration, native=replace(native, shape=shape), upper=shape)
