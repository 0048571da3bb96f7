"""Whether the intensity of each voxel is more likely inside a rough outline or around it.

The scan is compared with itself: intensities that are frequent inside the outline and rare around it speak
for the class, and the outline that follows from them is taken for the next round. So neither another scan nor
a unit of intensity is needed.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["inside_log_ratio"]

Volume = npt.NDArray[np.float32]

ROUNDS = 4
AROUND_MM = 25.0
SMOOTH_MM = 3.0
BINS = 32
MOST = 3.0
"""Largest log ratio: no intensity is certain."""

FEWEST = 20
PER_MM = 0.1
"""What a millimetre further inside the first outline counts, as a log ratio, while the outline moves."""


def inside_log_ratio(volume: Volume, inside_mm: Volume, spacing_mm: tuple[float, float, float]) -> Volume:
    """Return the log ratio of how frequent each voxel's intensity is inside the outline and around it.

    Args:
        volume: (Z, Y, X), any unit.
        inside_mm: (Z, Y, X), distance from a rough outline, negative outside.

    Returns: (Z, Y, X) in [-3, 3], smoothed by 3 mm; 0 where too little lies inside or around the outline.
    Source: in the manner of GrabCut (Rother et al. 2004, doi:10.1145/1015706.1015720), with a Gaussian
        filter in the place of the graph cut.
    """
    log_ratio: Volume = np.zeros(volume.shape, np.float32)
    lowest, highest = np.percentile(volume, (0.5, 99.5)) if volume.size else (0.0, 0.0)
    if highest <= lowest:
        return log_ratio
    bins = np.clip((volume - lowest) / (highest - lowest) * BINS, 0, BINS - 1).astype(np.int64)
    sigma = [SMOOTH_MM / step for step in spacing_mm]
    inside = inside_mm > 0
    for _ in range(ROUNDS):
        around = ~inside & (ndimage.distance_transform_edt(~inside, spacing_mm) < AROUND_MM)
        if min(np.count_nonzero(inside), np.count_nonzero(around)) < FEWEST:
            break
        ratio = np.log(_frequencies(bins[inside]) / _frequencies(bins[around])).clip(-MOST, MOST)
        log_ratio = ndimage.gaussian_filter(ratio.astype(np.float32)[bins], sigma)
        inside = log_ratio + PER_MM * inside_mm > 0
    return log_ratio


def _frequencies(bins: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the share of voxels in each bin, smoothed, none of them 0."""
    counts = ndimage.gaussian_filter1d(np.bincount(bins, minlength=BINS).astype(np.float64), 1.5)
    counts += 1e-3 * counts.sum() / BINS
    frequencies: npt.NDArray[np.float64] = counts / counts.sum()
    return frequencies
