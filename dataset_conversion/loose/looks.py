"""Tells a label map that nobody called one from a scan, by what is inside."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_conversion.loose.masks import summary
from dataset_conversion.volumes import read_volume, shape_of
from medplan.data.formats import PICTURE_ENDINGS, ending_of

__all__ = ["looks_like_labels"]

MAX_CLASSES = 300
ALIKE = 0.7
"""Share of neighbours inside structures with the same value: 0.9 for 138 regions of a brain at 1 mm, 0.1 in
scans of eight bits."""


def looks_like_labels(path: Path) -> bool:
    """Whether a file holds few whole numbers in closed areas, or only zeros; of a scan little is read.

    Raises: DataError if it cannot be read.
    """
    if ending_of(path) in PICTURE_ENDINGS:
        return summary(path).looks_like_labels
    if path.is_dir():
        return False
    if ending_of(path) not in (".nii", ".nii.gz"):
        return _closed_areas(read_volume(path).voxels)
    import nibabel

    shape = shape_of(path)
    if len(shape) != 3:
        return False
    stored = nibabel.load(path).dataobj
    # Scans are told by their first slices that are not all air.
    first = np.asanyarray(stored[..., : 1 + shape[2] // 16])
    return _closed_areas(first) and _closed_areas(np.asanyarray(stored))


def _closed_areas(voxels: npt.NDArray[Any]) -> bool:
    low, high = voxels.min(initial=0), voxels.max(initial=0)
    if voxels.ndim != 3 or not (low >= 0 and high < 2**16):
        return False
    if voxels.dtype.kind == "f" and not (voxels == np.rint(voxels)).all():
        return False
    present = np.zeros(2**16, dtype=bool)
    for plane in np.moveaxis(voxels, -1, 0):
        present[plane.astype(np.uint16)] = True
    values = np.count_nonzero(present)
    if values <= 2 and (present[0] or values == 0):
        return True
    return bool(1 < values <= MAX_CLASSES) and _alike(voxels) >= ALIKE


def _alike(voxels: npt.NDArray[Any]) -> float:
    """Return the share of neighbours along the first two axes, neither of them 0, that are equal."""
    pairs = [(voxels[1:], voxels[:-1]), (voxels[:, 1:], voxels[:, :-1])]
    equal = sum(np.count_nonzero((one == other) & (one != 0)) for one, other in pairs)
    both = sum(np.count_nonzero((one != 0) & (other != 0)) for one, other in pairs)
    return equal / both if both else 0.0
