"""Boxes around what matters in a scan: non-zero intensities, the body, and each value of a label map."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Box", "body_box", "body_threshold", "nonzero_box", "slabs", "value_boxes", "value_counts"]

Array = npt.NDArray[Any]
Box = tuple[tuple[int, int, int], tuple[int, int, int]]
"""First voxel and first voxel behind, both (z, y, x)."""

SLAB_VOXELS = 1 << 21
AIR_HU = -500.0
MIN_PLANE_SHARE = 0.001
"""A plane belongs to the body when more than this share of its voxels is brighter than the threshold."""


def slabs(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices along z that cut (..., Z, Y, X) into pieces of about two million voxels."""
    depth = max(1, SLAB_VOXELS // max(1, shape[-1] * shape[-2]))
    for start in range(0, shape[-3], depth):
        yield slice(start, min(start + depth, shape[-3]))


def nonzero_box(array: Array) -> Box:
    """Return the box of the voxels (C, Z, Y, X) that are not 0 in some channel; all of it if all are 0."""
    return _box(array.shape[1:], lambda part: (array[:, part] != 0).any(axis=0), 0.0)


def body_box(array: Array, thresholds: tuple[float, ...]) -> Box:
    """Return the box of the body: the planes in which enough voxels of some channel exceed its threshold.

    Args:
        array: (C, Z, Y, X).
        thresholds: one per channel, from `body_threshold`.

    Single bright voxels in the air do not count: a plane needs more than 0.1 % of its voxels.
    """

    def bright(part: slice) -> npt.NDArray[np.bool_]:
        mask = array[0, part] > thresholds[0]
        for channel, threshold in zip(array[1:], thresholds[1:], strict=True):
            mask |= channel[part] > threshold
        return mask

    return _box(array.shape[1:], bright, MIN_PLANE_SHARE)


def body_threshold(values: Array, counts: Array) -> float:
    """Return an intensity between air and body, from a histogram of one channel (ascending values).

    -500 where the values are Hounsfield units (some are below); else half-way between the darkest intensity
    and the threshold of Otsu 1979 (IEEE Trans. SMC 9, eq. 18), since dim skin belongs to the body.
    """
    if len(values) < 2 or values[0] < AIR_HU:
        return AIR_HU if len(values) and values[0] < AIR_HU else -np.inf
    weight = np.cumsum(counts, dtype=np.float64)
    total = weight[-1]
    low, high = values[np.searchsorted(weight, [0.005 * total, 0.995 * total]).clip(0, len(values) - 1)]
    clipped = np.clip(values, low, high).astype(np.float64)
    moment = np.cumsum(clipped * counts)
    below = weight[:-1]
    spread = (moment[-1] * below / total - moment[:-1]) ** 2 / np.maximum(below * (total - below), 1.0)
    otsu = clipped[int(np.argmax(spread))]
    return float(low + 0.5 * (otsu - low))


def value_counts(label: npt.NDArray[np.integer]) -> dict[int, int]:
    """Return how many voxels carry each value that occurs."""
    low, high = int(label.min(initial=0)), int(label.max(initial=0))
    if high - low > 1 << 20:
        values, numbers = np.unique(label, return_counts=True)
        return {int(value): int(number) for value, number in zip(values, numbers, strict=True)}
    counts = np.zeros(high - low + 1, dtype=np.int64)
    for part in slabs(label.shape):
        flat = label[part].reshape(-1)
        counts += np.bincount(flat if low == 0 else flat.astype(np.int64) - low, minlength=len(counts))
    return {int(value) + low: int(counts[value]) for value in np.flatnonzero(counts)}


def value_boxes(label: npt.NDArray[np.integer], values: tuple[int, ...]) -> dict[int, Box]:
    """Return the box of each of the values that occurs in a label map (Z, Y, X)."""
    if not values:
        return {}
    lower, upper = _box(label.shape, lambda part: label[part] != 0, 0.0)
    inner = label[tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))]
    shift = min(0, int(inner.min(initial=0))) - 1
    if max(values) - shift > 1 << 16 or shift < -1:
        ordered = np.array(sorted(values))
        index = np.searchsorted(ordered, inner).clip(0, len(ordered) - 1)
        inner = np.where(ordered[index] == inner, index + 1, 0)
        positions = {int(value): number for number, value in enumerate(ordered)}
    else:
        positions = {value: value - 1 for value in values if value > 0}
    from scipy.ndimage import find_objects

    found = find_objects(inner)
    boxes: dict[int, Box] = {}
    for value, position in positions.items():
        if position < len(found) and found[position] is not None:
            z, y, x = found[position]
            boxes[value] = (
                (z.start + lower[0], y.start + lower[1], x.start + lower[2]),
                (z.stop + lower[0], y.stop + lower[1], x.stop + lower[2]),
            )
    return boxes


def _box(shape: tuple[int, ...], mask_of: Callable[[slice], npt.NDArray[np.bool_]], share: float) -> Box:
    """Return the box of the planes of which more than `share` of the voxels are in the mask, or all."""
    depth, height, width = shape
    per_z = np.zeros(depth, dtype=np.int64)
    per_yx = np.zeros((height, width), dtype=np.int32)
    for part in slabs(shape):
        mask = mask_of(part)
        per_z[part] = np.count_nonzero(mask.reshape(len(mask), -1), axis=1)
        per_yx += mask.sum(axis=0, dtype=np.int32)
    counts = (per_z, per_yx.sum(axis=1, dtype=np.int64), per_yx.sum(axis=0, dtype=np.int64))
    areas = (height * width, depth * width, depth * height)
    inside = [np.flatnonzero(count > share * area) for count, area in zip(counts, areas, strict=True)]
    if any(len(planes) == 0 for planes in inside):
        return (0, 0, 0), (depth, height, width)
    first, last = ([int(planes[end]) for planes in inside] for end in (0, -1))
    return (first[0], first[1], first[2]), (last[0] + 1, last[1] + 1, last[2] + 1)
