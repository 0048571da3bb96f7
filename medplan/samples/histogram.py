"""Histograms of images as quantiles."""

import numpy as np
import numpy.typing as npt

__all__ = ["quantiles"]

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
