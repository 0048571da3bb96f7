"""Which part of a volume is worth keeping."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medplan.data.boxes import Box, box_slices, nonzero_box
from medplan.plan.schema import Modality

__all__ = ["crop_box", "half_otsu"]

Voxel = tuple[int, int, int]

_AIR_HU = -500.0
_MARGIN_MM = 10.0
_COARSE_MM = 3.0
_PART_SHARE = 0.2
"""Parts of at least this share of the largest belong to the body too: two legs, arms beside the trunk."""


def crop_box(
    array: npt.NDArray[np.generic],
    *,
    crop: Literal["nonzero", "body", "none"],
    modalities: Sequence[Modality],
    spacing_mm: tuple[float, float, float] | None,
) -> Box:
    """Return the box [lower, upper) in voxels (z, y, x) that holds what matters, or else the whole image.

    ``nonzero`` is the smallest box of all voxels that are non-zero in any channel. ``body`` is the box of the
    body: the large connected parts of a CT above -500 HU, or of another image above half of Otsu's threshold
    between air and tissue, with a margin of 10 mm, inside the ``nonzero`` box unless the image is a CT.

    Args:
        array: (C, Z, Y, X), finite.
        modalities: per channel; the first CT channel, else the first channel, shows the body.
    """
    whole = (0, 0, 0), _voxel(array.shape[1:])
    if crop == "none":
        return whole
    if crop == "body" and "CT" in modalities:
        return _large_parts(array[list(modalities).index("CT")], _AIR_HU, spacing_mm) or whole
    box = nonzero_box(*array)
    if box is None or crop == "nonzero":
        return box or whole
    inside = array[0][box_slices(box)]
    parts = _large_parts(inside, half_otsu(inside), spacing_mm)
    return box if parts is None else (_voxel(np.add(box[0], parts[0])), _voxel(np.add(box[0], parts[1])))


def _large_parts(
    volume: npt.NDArray[np.generic], threshold: float, spacing_mm: tuple[float, float, float] | None
) -> Box | None:
    """Return the box of the large connected parts above a threshold, with a margin; seen coarsely."""
    spacing = spacing_mm or (1.0, 1.0, 1.0)
    steps = [
        max(1, min(round(_COARSE_MM / one), n // 16)) for one, n in zip(spacing, volume.shape, strict=True)
    ]
    coarse = (
        np.asarray(volume[tuple(slice(None, None, step) for step in steps)], dtype=np.float32) > threshold
    )
    parts, count = ndimage.label(coarse)
    if count == 0:
        return None
    sizes = np.bincount(parts.ravel())[1:]
    kept = [
        box
        for box, size in zip(ndimage.find_objects(parts), sizes, strict=True)
        if size >= _PART_SHARE * sizes.max()
    ]
    lower, upper = [], []
    for axis, (step, one, n) in enumerate(zip(steps, spacing, volume.shape, strict=True)):
        margin = round(_MARGIN_MM / one)
        first, behind = min(box[axis].start for box in kept), max(box[axis].stop for box in kept)
        lower.append(max(0, (first - 1) * step + 1 - margin))
        upper.append(min(n, behind * step + margin))
    return _voxel(lower), _voxel(upper)


def half_otsu(volume: npt.NDArray[np.generic]) -> float:
    """Return the intensity half way from the darkest voxel to Otsu's threshold.

    Source: Otsu 1979, doi:10.1109/TSMC.1979.4310076, eq. 18.  Differs: half of it, since dark tissue is
        tissue.
    """
    low, high = float(volume.min()), float(volume.max())
    if not high > low:
        return low - 1
    counts, edges = np.histogram(volume[::2, ::2, ::2], bins=256, range=(low, high))
    weight = np.cumsum(counts) / max(1, counts.sum())
    moment = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2) / max(1, counts.sum())
    between = (moment[-1] * weight - moment) ** 2 / np.maximum(weight * (1 - weight), 1e-12)
    return (low + float(edges[int(between.argmax()) + 1])) / 2


def _voxel(values: Sequence[int] | npt.NDArray[np.integer]) -> Voxel:
    z, y, x = (int(value) for value in values)
    return z, y, x
