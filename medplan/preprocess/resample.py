"""Images by cubic splines and label maps by linear interpolation, both as matrix products per axis."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from medplan.data.boxes import Box, box_slices, value_boxes
from medplan.data.labels import IGNORE
from medplan.preprocess.operators import along, band, positions, window

__all__ = ["resample_image", "resample_label", "resampled_shape"]

Voxel = tuple[int, int, int]
Number = TypeVar("Number", bound=np.generic)


def resampled_shape(
    shape: Voxel, spacing_mm: tuple[float, float, float], target_mm: tuple[float, float, float]
) -> Voxel:
    """Return how many voxels (z, y, x), at least one each, cover the same extent at the target spacing."""
    z, y, x = (max(1, round(n * old / new)) for n, old, new in zip(shape, spacing_mm, target_mm, strict=True))
    return z, y, x


def resample_image(array: npt.NDArray[np.floating], shape: Voxel) -> npt.NDArray[np.float32]:
    """Resample every channel by cubic B-splines, clipped to the range the channel had before.

    Args:
        array: (C, Z, Y, X), finite.
        shape: (z, y, x) wanted; the extent of the volume stays the same.

    Returns: (C, *shape) float32; the input itself when the shape does not change.
    Differs: from `skimage.transform.resize(order=3, mode='edge', anti_aliasing=False)`, whose figures these
        are, by the rounding of float32 (below 1e-5 for intensities of unit deviation).
    """
    array = np.ascontiguousarray(array, dtype=np.float32)
    if array.shape[1:] == tuple(shape):
        return array
    result = np.empty((len(array), *shape), dtype=np.float32)
    for source, target in zip(array, result, strict=True):
        low, high = float(source.min()), float(source.max())
        volume = source
        for axis in _strongest_reduction_first(source.shape, shape):
            volume = along(volume, axis, band("cubic", source.shape[axis], shape[axis]))
        np.clip(volume, low, high, out=target)
    return result


def resample_label(codes: npt.NDArray[np.integer], shape: Voxel) -> npt.NDArray[np.int16]:
    """Resample a label map: each class linearly on its own, then the class with the largest share wins.

    Each class is interpolated inside the box that it can reach, so the cost grows with the volume of the
    classes rather than with their number. Where a voxel without annotation has any share the nearest voxel
    decides, so that annotation neither spreads into the unknown nor is lost by it. Equal shares go to the
    higher code.

    Args:
        codes: (Z, Y, X), codes of a `LabelSpace`, `IGNORE` included.
        shape: (z, y, x) wanted.

    Returns: int16 of that shape.
    Differs: nnU-Net gives a voxel to the background where no class reaches one half; here the largest share
        wins.
    """
    source: npt.NDArray[np.int16] = np.ascontiguousarray(codes, dtype=np.int16)
    if source.shape == tuple(shape):
        return source
    result = np.zeros(shape, dtype=np.int16)
    best = np.zeros(shape, dtype=np.float32)
    total = np.zeros(shape, dtype=np.float32)
    boxes = value_boxes(source)
    for code in sorted(boxes):
        if code == IGNORE:
            continue
        share, where = _share(source, code, boxes[code], shape)
        wins = share >= best[where]
        wins &= share > 0
        result[where][wins] = code
        np.maximum(best[where], share, out=best[where])
        total[where] += share
    result[best < 1 - total] = 0
    if IGNORE in boxes:
        share, where = _share(source, IGNORE, boxes[IGNORE], shape)
        result[where][share > 0] = _nearest(source, shape)[where][share > 0]
    return result


def _strongest_reduction_first(old: tuple[int, ...], new: Voxel) -> list[int]:
    return sorted(
        (axis for axis in range(3) if old[axis] != new[axis]), key=lambda axis: new[axis] / old[axis]
    )


def _share(
    codes: npt.NDArray[np.int16], code: int, box: Box, shape: Voxel
) -> tuple[npt.NDArray[np.float32], tuple[slice, ...]]:
    """Return the linearly interpolated share of one class and the part of the output that it can reach."""
    bands, where = [], []
    for low, high, old, new in zip(*box, codes.shape, shape, strict=True):
        position = np.clip(positions(old, new), 0, old - 1)
        reached = np.flatnonzero((position > low - 1) & (position < high))
        if not len(reached):
            return np.zeros((0, 0, 0), np.float32), (slice(0, 0),) * 3
        rows = int(reached[0]), int(reached[-1]) + 1
        bands.append(window("linear", old, new, rows, (low, high)))
        where.append(slice(*rows))
    volume = (codes[box_slices(box)] == code).astype(np.float32)
    sizes = tuple(part.stop - part.start for part in where)
    for axis in _order(volume.shape, sizes):
        volume = along(volume, axis, bands[axis])
    return volume, tuple(where)


def _order(old: tuple[int, ...], new: tuple[int, ...]) -> list[int]:
    return sorted(range(3), key=lambda axis: new[axis] / old[axis])


def _nearest(codes: npt.NDArray[np.int16], shape: Voxel) -> npt.NDArray[np.int16]:
    picks = [
        np.clip(np.floor(positions(old, new) + 0.5).astype(np.int64), 0, old - 1)
        for old, new in zip(codes.shape, shape, strict=True)
    ]
    return np.asarray(codes[np.ix_(*picks)])
