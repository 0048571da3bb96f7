"""Boxes around what matters in a scan: non-zero intensities, the body, and each value of a label map."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Box", "around", "body_box", "body_threshold", "box_slices", "nonzero_box", "slabs", "value_boxes",
    "value_counts",
]  # fmt: skip

Array = npt.NDArray[Any]
Box = tuple[tuple[int, int, int], tuple[int, int, int]]
"""First voxel and first voxel behind, both (z, y, x)."""

SLAB_VOXELS = 1 << 18
MAX_VALUE_RANGE = 1 << 20
MAX_COUNTERS = 1 << 10
"""Label values over a wider range are numbered anew before they are counted per row and column."""

AIR_HU = -500.0
MIN_PLANE_SHARE = 0.001
"""A plane belongs to the body when more than this share of its voxels is brighter than the threshold."""


def box_slices(box: Box) -> tuple[Any, ...]:
    """Return what indexes a box in the last axes of an array."""
    return (..., *(slice(first, behind) for first, behind in zip(*box, strict=True)))


def around(boxes: Sequence[Box]) -> Box:
    """Return the smallest box that holds all of these."""
    z0, y0, x0 = np.min([first for first, _ in boxes], axis=0).tolist()
    z1, y1, x1 = np.max([behind for _, behind in boxes], axis=0).tolist()
    return (z0, y0, x0), (z1, y1, x1)


def slabs(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices along z that cut (..., Z, Y, X) into pieces of about a quarter of a million voxels."""
    depth = max(1, SLAB_VOXELS // max(1, shape[-1] * shape[-2]))
    for start in range(0, shape[-3], depth):
        yield slice(start, min(start + depth, shape[-3]))


def nonzero_box(*volumes: Array) -> Box | None:
    """Return the box of the voxels (Z, Y, X) that are not 0 in some of the volumes; None if all are 0."""
    first, behind = [], []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        # `any` stops at the first voxel of a plane that counts, and makes no second volume.
        planes = np.flatnonzero(np.any([volume.any(axis=others) for volume in volumes], axis=0))
        if not len(planes):
            return None
        first.append(int(planes[0]))
        behind.append(int(planes[-1]) + 1)
    return (first[0], first[1], first[2]), (behind[0], behind[1], behind[2])


def body_box(array: Array, thresholds: tuple[float, ...]) -> Box:
    """Return the box of the body: the planes in which enough voxels of some channel exceed its threshold.

    Args:
        array: (C, Z, Y, X).
        thresholds: one per channel, from `body_threshold`.

    Single bright voxels in the air do not count: a plane needs more than 0.1 % of its voxels. Where no plane
    has so many, it is the whole image.
    """
    depth, height, width = array.shape[1:]
    per_z = np.zeros(depth, dtype=np.int64)
    per_yx = np.zeros((height, width), dtype=np.int32)
    for part in slabs(array.shape):
        mask = array[0, part] > thresholds[0]
        for channel, threshold in zip(array[1:], thresholds[1:], strict=True):
            mask |= channel[part] > threshold
        per_z[part] = np.count_nonzero(mask.reshape(len(mask), -1), axis=1)
        per_yx += mask.sum(axis=0, dtype=np.int32)
    counts = (per_z, per_yx.sum(axis=1, dtype=np.int64), per_yx.sum(axis=0, dtype=np.int64))
    areas = (height * width, depth * width, depth * height)
    inside = [
        np.flatnonzero(count > MIN_PLANE_SHARE * area) for count, area in zip(counts, areas, strict=True)
    ]
    if any(len(planes) == 0 for planes in inside):
        return (0, 0, 0), (depth, height, width)
    first, last = ([int(planes[end]) for planes in inside] for end in (0, -1))
    return (first[0], first[1], first[2]), (last[0] + 1, last[1] + 1, last[2] + 1)


def body_threshold(values: Array, counts: Array) -> float:
    """Return an intensity between air and body, from a histogram of one channel (ascending values).

    -500 where the values are Hounsfield units (some are below); else a quarter of the way from the mean of
    the dark to the mean of the bright class of Otsu 1979 (IEEE Trans. SMC 9, eq. 18), since dim skin belongs
    to the body.
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
    best = int(np.argmax(spread))
    dark = moment[best] / below[best]
    bright = (moment[-1] - moment[best]) / (total - below[best])
    return float(dark + 0.25 * (bright - dark))


def value_counts(label: npt.NDArray[np.integer]) -> dict[int, int]:
    """Return how many voxels (Z, Y, X) carry each value that occurs."""
    inner = label[box_slices(nonzero_box(label) or ((0, 0, 0), (0, 0, 0)))]
    low, high = int(inner.min(initial=0)), int(inner.max(initial=0))
    if high - low > MAX_VALUE_RANGE:
        values, numbers = np.unique(inner, return_counts=True)
        found = {int(value): int(number) for value, number in zip(values, numbers, strict=True)}
    else:
        counts = np.zeros(high - low + 1, dtype=np.int64)
        for part in slabs(inner.shape):
            counts += np.bincount(inner[part].reshape(-1).astype(np.int64) - low, minlength=len(counts))
        found = {int(value) + low: int(counts[value]) for value in np.flatnonzero(counts)}
    background = found.pop(0, 0) + label.size - inner.size
    return {0: background, **found} if background else found


def value_boxes(label: npt.NDArray[np.integer]) -> dict[int, Box]:
    """Return the box of each value other than 0 that occurs in a label map (Z, Y, X)."""
    low, high = int(label.min(initial=0)), int(label.max(initial=0))
    is_wide = high - low >= MAX_COUNTERS
    values: Sequence[int] = sorted(value_counts(label)) if is_wide else range(low, high + 1)
    count = len(values)
    first = np.full((count, 3), max(label.shape), dtype=np.int64)
    behind = np.zeros((count, 3), dtype=np.int64)
    for z, plane in enumerate(label):
        if not plane.any():
            continue
        rows, columns = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
        part = plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.int64)
        numbers = np.searchsorted(values, part) if is_wide else part - low
        # One counter per value and row, and one per value and column: no search for each value.
        for axis, start in ((1, rows[0]), (2, columns[0])):
            length = part.shape[axis - 1]
            lines = np.arange(length)[:, None] if axis == 1 else np.arange(length)
            counted = np.bincount((numbers + count * lines).ravel(), minlength=count * length)
            there = counted.reshape(length, count) > 0
            present = np.flatnonzero(there.any(axis=0))
            lowest, highest = there.argmax(axis=0)[present], length - there[::-1].argmax(axis=0)[present]
            first[present, axis] = np.minimum(first[present, axis], start + lowest)
            behind[present, axis] = np.maximum(behind[present, axis], start + highest)
        first[present, 0], behind[present, 0] = np.minimum(first[present, 0], z), z + 1
    boxes = {}
    for value, lower, upper in zip(values, first.tolist(), behind.tolist(), strict=True):
        if value != 0 and upper[0] > 0:
            boxes[value] = ((lower[0], lower[1], lower[2]), (upper[0], upper[1], upper[2]))
    return boxes
