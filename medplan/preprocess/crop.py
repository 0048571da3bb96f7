"""Which part of a volume is worth keeping."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medplan.plan.schema import Modality

__all__ = ["crop_box", "half_otsu"]

Voxel = tuple[int, int, int]

_AIR_HU = -500.0
_MARGIN_MM = 10.0
_COARSE_MM = 3.0


def crop_box(
    array: npt.NDArray[np.generic],
    *,
    crop: Literal["nonzero", "body", "none"],
    modalities: Sequence[Modality],
    spacing_mm: tuple[float, float, float] | None,
) -> tuple[Voxel, Voxel]:
    """Return the box [lower, upper) in voxels (z, y, x) that holds what matters, or else the whole image.

    ``nonzero`` is the smallest box of all voxels that are non-zero in any channel. ``body`` is the box of the
    body: the largest connected part of a CT above -500 HU, or of another image above half of Otsu's threshold
    between air and tissue, with a margin of 10 mm, inside the ``nonzero`` box unless the image is a CT.

    Args:
        array: (C, Z, Y, X), finite.
        modalities: per channel; the first CT channel, else the first channel, shows the body.
    """
    whole = (0, 0, 0), _voxel(array.shape[1:])
    if crop == "none":
        return whole
    if crop == "body" and "CT" in modalities:
        return _largest_part(array[list(modalities).index("CT")], _AIR_HU, spacing_mm) or whole
    boxes = ndimage.find_objects((array != 0).any(axis=0).view(np.uint8))
    if not boxes:
        return whole
    box = boxes[0]
    lower, upper = _voxel([part.start for part in box]), _voxel([part.stop for part in box])
    if crop == "nonzero":
        return lower, upper
    inside = array[0][box]
    part = _largest_part(inside, half_otsu(inside), spacing_mm)
    if part is None:
        return lower, upper
    return _voxel(np.add(lower, part[0])), _voxel(np.add(lower, part[1]))


def _largest_part(
    volume: npt.NDArray[np.generic], threshold: float, spacing_mm: tuple[float, float, float] | None
) -> tuple[Voxel, Voxel] | None:
    """Return the box of the largest connected part above a threshold, with a margin; seen coarsely."""
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
    largest = int(np.bincount(parts.ravel())[1:].argmax())
    box = ndimage.find_objects(parts)[largest]
    lower, upper = [], []
    for limits, step, one, n in zip(box, steps, spacing, volume.shape, strict=True):
        margin = round(_MARGIN_MM / one)
        lower.append(max(0, (limits.start - 1) * step + 1 - margin))
        upper.append(min(n, limits.stop * step + margin))
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
