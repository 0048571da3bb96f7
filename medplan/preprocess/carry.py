"""Registration of one scan (the source) to another (the target) by a shift and a scale along each axis.

Such a map is applied as three small matrix products, so that hundreds can be tried in a second.
"""

# Shapes: Z Y X voxels of the target, z y x voxels of the source.

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medplan.preprocess.crop import half_otsu

__all__ = ["AxisMap", "align_bodies", "body_box", "refine"]

Volume = npt.NDArray[np.float32]
Millimetres = tuple[float, float, float]
Extent = tuple[int, int]

COARSE_MM = 6.0
STRIDES = ((0.1, 8.0), (0.05, 4.0), (0.02, 2.0))
"""Changes that are tried, coarse to fine: of the scale, as a share of it, and of the position in mm."""

ROUNDS = 3
BODY_SHARE = 0.02
MIN_OVERLAP = 0.3


@dataclass(frozen=True)
class AxisMap:
    """Voxel i along an axis of the target lies at voxel ``scale * i + offset`` of the source."""

    scale: tuple[float, float, float]
    offset: tuple[float, float, float]

    def carry(self, volume: Volume, shape: tuple[int, int, int]) -> Volume:
        """Resample the source (z, y, x) linearly onto a target of that shape; 0 outside the source."""
        positions = [
            scale * np.arange(length, dtype=np.float64) + offset
            for scale, offset, length in zip(self.scale, self.offset, shape, strict=True)
        ]
        pulls = [_pull(where, length) for where, length in zip(positions, volume.shape, strict=True)]
        return _apply(pulls, volume)

    def changed(self, axis: int, *, share: float, shift: float, centre: float) -> "AxisMap":
        """Return the map with one axis scaled about a voxel of the target and shifted by source voxels."""
        scale, offset = list(self.scale), list(self.offset)
        scale[axis] *= 1 + share
        offset[axis] += shift + (self.scale[axis] - scale[axis]) * centre
        return AxisMap((scale[0], scale[1], scale[2]), (offset[0], offset[1], offset[2]))


def body_box(volume: Volume) -> tuple[Extent, Extent, Extent]:
    """Return, per axis, the first and last plane of which at least 2 % is tissue."""
    steps = (1, 2, 2)
    thin = volume[:, :: steps[1], :: steps[2]]
    tissue = thin > half_otsu(thin)
    box = []
    for axis, step in enumerate(steps):
        shares = tissue.mean(tuple(other for other in range(3) if other != axis))
        found = np.flatnonzero(shares >= BODY_SHARE) * step
        box.append((int(found[0]), int(found[-1])) if len(found) else (0, max(0, volume.shape[axis] - 1)))
    return box[0], box[1], box[2]


def align_bodies(target: Volume, source: Volume) -> AxisMap:
    """Return the map that brings the box of the source's body onto that of the target's."""
    pairs = zip(body_box(target), body_box(source), strict=True)
    scales, offsets = [], []
    for (first, last), (other_first, other_last) in pairs:
        scales.append(max(1, other_last - other_first) / max(1, last - first))
        offsets.append(other_first - scales[-1] * first)
    return AxisMap((scales[0], scales[1], scales[2]), (offsets[0], offsets[1], offsets[2]))


def refine(
    start: AxisMap,
    target: Volume,
    source: Volume,
    *,
    target_mm: Millimetres,
    source_mm: Millimetres,
    weight: Volume | None = None,
) -> tuple[AxisMap, float]:
    """Improve a map axis by axis for as long as the resampled source correlates better with the target.

    Intensities are compared at 6 mm; both scans should be of one modality.

    Args:
        target, source: (Z, Y, X) and (z, y, x).
        weight: (z, y, x), at least 0: how much each voxel of the source counts; None for all alike.

    Returns: the map and its correlation, -1 to 1.
    """
    likeness = _Likeness(target, source, target_mm, source_mm, weight)
    best, highest = start, likeness(start)
    middle = np.array(target.shape) / 2 - 0.5
    if weight is not None:
        centre = np.array([_centre(weight, axis) for axis in range(3)])
        middle = (centre - np.array(start.offset)) / np.array(start.scale)
    for share, millimetres in STRIDES:
        for _ in range(ROUNDS):
            before = highest
            for axis in range(3):
                shift = millimetres / source_mm[axis]
                for by, to in ((0.0, shift), (0.0, -shift), (share, 0.0), (-share, 0.0)):
                    other = best.changed(axis, share=by, shift=to, centre=float(middle[axis]))
                    value = likeness(other)
                    if value > highest:
                        best, highest = other, value
            if highest == before:
                break
    return best, highest


class _Likeness:
    """The weighted correlation of the target with the source resampled onto it, both at 6 mm."""

    def __init__(
        self,
        target: Volume,
        source: Volume,
        target_mm: Millimetres,
        source_mm: Millimetres,
        weight: Volume | None,
    ) -> None:
        self.target, self.places = _coarse(target, target_mm)
        self.source, self.source_places = _coarse(source, source_mm)
        ones = np.ones(source.shape, np.float32) if weight is None else weight
        self.weight, _ = _coarse(ones, source_mm)
        self.least = (
            MIN_OVERLAP * float(self.weight.mean()) * float(np.prod(np.multiply(source.shape, source_mm)))
        )
        self.cell = float(np.prod(np.multiply(target.shape, target_mm))) / self.target.size

    def __call__(self, mapping: AxisMap) -> float:
        """Return -1 to 1; -1 where too little of what counts overlaps."""
        pulls = []
        for axis, (places, source_places) in enumerate(zip(self.places, self.source_places, strict=True)):
            wanted = mapping.scale[axis] * places + mapping.offset[axis]
            step = (source_places[-1] - source_places[0]) / max(1, len(source_places) - 1) or 1.0
            pulls.append(_pull((wanted - source_places[0]) / step, len(source_places)))
        weight, carried = _apply(pulls, self.weight), _apply(pulls, self.source)
        total = float(weight.sum())
        if total <= 0 or total * self.cell < self.least:
            return -1.0
        one = self.target - float((self.target * weight).sum()) / total
        other = carried - float((carried * weight).sum()) / total
        spread = float((weight * one * one).sum()) * float((weight * other * other).sum())
        return float((weight * one * other).sum()) / (math.sqrt(spread) + 1e-9)


def _coarse(volume: Volume, spacing_mm: Millimetres) -> tuple[Volume, list[npt.NDArray[np.float64]]]:
    """Average onto cells of 6 mm (or the spacing, if larger); also return where their centres lie."""
    places = []
    for length, step in zip(volume.shape, spacing_mm, strict=True):
        number = max(1, round(length * min(1.0, step / COARSE_MM)))
        places.append((np.arange(number) + 0.5) * length / number - 0.5)
    pulls = [
        _pull(where, length, width=length / len(where))
        for where, length in zip(places, volume.shape, strict=True)
    ]
    return _apply([pull / pull.sum(1, keepdims=True) for pull in pulls], volume), places


def _pull(where: npt.NDArray[np.floating], length: int, *, width: float = 1.0) -> Volume:
    """Return the matrix (places, length) of linear interpolation, or of averages over more than a voxel."""
    distance = np.abs(where[:, None] - np.arange(length)[None])
    weights: Volume = np.maximum(0.0, 1.0 - distance / max(1.0, width)).astype(np.float32)
    return weights


def _apply(pulls: list[Volume], volume: Volume) -> Volume:
    depth, height, width = pulls
    flat = depth @ volume.reshape(volume.shape[0], -1)
    planes = flat.reshape(len(depth), *volume.shape[1:])
    result: Volume = np.matmul(np.matmul(height[None], planes), width.T[None])
    return result


def _centre(weight: Volume, axis: int) -> float:
    line = weight.sum(tuple(other for other in range(3) if other != axis))
    return float((line * np.arange(len(line))).sum() / max(float(line.sum()), 1e-9))
