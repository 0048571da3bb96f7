"""How much each case looks like all the others, once they lie alike.

Each image is brought into a common frame by the moments of its body: centre and spread along all axes. A
thumbnail of 12 x 12 x 12 mean intensities is kept of it, so that n images are compared at the cost of n.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medplan.data.geometry import Geometry, canonical_axes, to_canonical

__all__ = ["SIDE", "Thumbnail", "likeness", "thumbnail"]

SIDE = 12
REACH = 2.5
"""Half of the thumbnail's side, in standard deviations of the body."""
MOST_VOXELS = 64
"""Of a side that are looked at."""
FEWEST = 3

Thumbnail = npt.NDArray[np.float16]


def thumbnail(
    volume: npt.NDArray[np.generic], geometry: Geometry, *, threshold: float, highest: float
) -> Thumbnail | None:
    """Return (12, 12, 12) mean intensities in [0, 1] of a volume (Z, Y, X), in the frame of its body.

    The frame is affine: shifted to the body's centre, scaled and sheared by the symmetric root of its
    covariance, axes in canonical order.

    Args:
        threshold: intensities above it are body; it becomes 0.
        highest: intensity that becomes 1.

    Returns: None for pictures, and where there is next to no body.
    """
    if min(volume.shape) < 2 or not highest > threshold:
        return None
    steps = [max(1, -(-side // MOST_VOXELS)) for side in volume.shape]
    sparse = np.asarray(volume[:: steps[0], :: steps[1], :: steps[2]], dtype=np.float64)
    spacing = np.multiply(geometry.spacing_mm or (1.0, 1.0, 1.0), steps)
    values = ((sparse - threshold) / (highest - threshold)).clip(0, 1)
    points = np.stack([grid.ravel() for grid in np.indices(values.shape)], axis=1) * spacing
    body = points[values.ravel() > 0]
    if len(body) < SIDE**3 // 8:
        return None
    spread, axes = np.linalg.eigh(np.cov(body.T))
    if spread[0] <= 1e-6 * spread[-1]:
        return None
    places = (points - body.mean(axis=0)) @ (axes / np.sqrt(spread)) @ axes.T
    cells = np.floor((places / REACH + 1) / 2 * SIDE).astype(np.int64)
    inside = ((cells >= 0) & (cells < SIDE)).all(axis=1)
    numbers = np.ravel_multi_index(tuple(cells[inside].T), (SIDE,) * 3)
    total = np.bincount(numbers, weights=values.ravel()[inside], minlength=SIDE**3)
    count = np.bincount(numbers, minlength=SIDE**3)
    order, flipped = canonical_axes(geometry, "RAS")
    means = (total / np.maximum(count, 1)).reshape((SIDE,) * 3).astype(np.float16)
    return to_canonical(means, axes=order, flipped=flipped)


def likeness(thumbnails: Sequence[Thumbnail | None]) -> tuple[float | None, ...]:
    """Return the mean correlation of each thumbnail with all the others; None where that says nothing."""
    known = [index for index, one in enumerate(thumbnails) if one is not None and np.ptp(one) > 0]
    result: list[float | None] = [None] * len(thumbnails)
    if len(known) < FEWEST:
        return tuple(result)
    vectors = np.stack([np.asarray(thumbnails[index], dtype=np.float64).ravel() for index in known])
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    means = (vectors @ vectors.sum(axis=0) - 1) / (len(known) - 1)
    for index, mean in zip(known, means.tolist(), strict=True):
        # Rounded, so that the same images in another order give the same fingerprint.
        result[index] = round(mean, 6)
    return tuple(result)
