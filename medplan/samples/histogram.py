"""Histograms of images as quantiles, and the map from the intensities of one image to those of another."""

import numpy as np
import numpy.typing as npt

__all__ = ["histogram_map", "quantiles"]

_NUM_QUANTILES = 33
_ENOUGH_VOXELS = 2**20


def quantiles(image: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Return the histogram of each channel of (C, Z, Y, X) as (C, 33) quantiles, lowest to highest.

    Of a large volume every n-th voxel counts.
    """
    voxels = image.reshape(len(image), -1)
    voxels = voxels[:, :: -(-voxels.shape[1] // _ENOUGH_VOXELS)]
    levels = np.linspace(0, 1, _NUM_QUANTILES)
    return np.asarray(np.quantile(voxels, levels, axis=1).T, dtype=np.float32)


def histogram_map(
    source: npt.NDArray[np.floating], target: npt.NDArray[np.floating]
) -> npt.NDArray[np.float32]:
    """Return (C, 2, 33): intensities of the source, rising, and those of the target that take their place.

    Where the source has one intensity for several quantiles, air for instance, it becomes their mean.

    Args:
        source, target: `quantiles` of two images with the same channels.
    """
    pairs = []
    for old, new in zip(source, target, strict=True):
        _, group = np.unique(old, return_inverse=True)
        pairs.append(np.stack([old, (np.bincount(group, new) / np.bincount(group))[group]]))
    return np.stack(pairs).astype(np.float32)
