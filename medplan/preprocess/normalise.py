"""Intensities to network input, as the plan's `Normalisation` of each channel says."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medplan.errors import PlanError
from medplan.plan.schema import Normalisation

__all__ = ["body_mask", "normalise"]

_MAX_PERCENTILE_SAMPLES = 2**22
_PIECE = 2**18


def normalise(
    array: npt.NDArray[np.generic], normalisations: Sequence[Normalisation]
) -> npt.NDArray[np.float32]:
    """Normalise every channel.

    With `nonzero_only` the constants come from, and are applied to, the region that is non-zero in any
    channel, its holes filled; everything outside becomes 0. A channel without any contrast becomes 0
    everywhere.

    Args:
        array: (C, Z, Y, X) of any number type, finite; not changed.
        normalisations: one per channel.

    Returns: (C, Z, Y, X) float32.
    Raises: PlanError if their numbers differ.
    Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, supplementary note 2 (z-score; CT with
        clipping).
    """
    if len(array) != len(normalisations):
        raise PlanError(
            f"the image has {len(array)} channels but the plan normalises {len(normalisations)}; "
            "plan the dataset again, or give images with the channels that were planned."
        )
    mask = body_mask(array) if any(one.nonzero_only for one in normalisations) else None
    result = np.empty(array.shape, dtype=np.float32)
    for source, target, one in zip(array, result, normalisations, strict=True):
        target[...] = source
        _normalise_channel(target, one, mask if one.nonzero_only else None)
    return result


def body_mask(array: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_] | None:
    """Return (Z, Y, X): where any channel is non-zero, holes filled; None if that is everywhere."""
    mask = (array != 0).any(axis=0)
    if mask.all():
        return None
    outside, count = ndimage.label(~mask)
    rim = np.zeros(count + 1, dtype=bool)
    for axis in range(3):
        if mask.shape[axis] > 1:
            rim[np.take(outside, (0, -1), axis=axis)] = True
    rim[0] = False
    return np.asarray(~rim[outside])


def _normalise_channel(
    values: npt.NDArray[np.float32], one: Normalisation, mask: npt.NDArray[np.bool_] | None
) -> None:
    if one.scheme == "none":
        return
    inside = values if mask is None else values[mask]
    if not inside.size:
        values[...] = 0
        return
    low, high = one.low, one.high
    if one.percentiles is not None and low is None and high is None:
        flat = inside.reshape(-1)
        step = -(-flat.size // _MAX_PERCENTILE_SAMPLES)
        low, high = (float(value) for value in np.percentile(flat[::step], one.percentiles))
    if one.scheme == "unit":
        low = float(inside.min()) if low is None else low
        high = float(inside.max()) if high is None else high
    if low is not None or high is not None:
        np.clip(values, low, high, out=values)
        inside = values if mask is None else values[mask]
    if one.scheme == "unit" and low is not None and high is not None:
        shift, scale = low, high - low
    else:
        mean, std = one.mean, one.std
        found = (0.0, 0.0) if mean is not None and std is not None else _moments(inside)
        shift, scale = found[0] if mean is None else mean, found[1] if std is None else std
    if scale <= 1e-6 * abs(shift) or scale <= 1e-12:
        values[...] = 0
        return
    values -= np.float32(shift)
    values *= np.float32(1 / scale)
    if mask is not None:
        values[~mask] = 0


def _moments(values: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Return mean and standard deviation in double precision, without a copy of all values at once."""
    flat = values.reshape(-1)
    mean = float(flat.mean(dtype=np.float64))
    pieces = (flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE))
    squares = sum(float(np.square(piece - np.float64(mean)).sum()) for piece in pieces)
    return mean, float(np.sqrt(squares / flat.size))
