"""Superpixels: each slice of a case cut into regions of like intensity, which can stand in for organs.

Source: Ouyang et al. 2020, arXiv:2007.09886 (superpixels as pseudo-labels); Felzenszwalb and Huttenlocher
2004, doi:10.1023/B:VISI.0000022288.19776.77; Achanta et al. 2012, doi:10.1109/TPAMI.2012.120 (SLIC).
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medplan.errors import PlanError
from medplan.preprocess.crop import half_otsu
from medplan.samples.cases import Case

__all__ = ["Superpixels", "grey_levels", "superpixels"]

HIGHEST_PERCENTILE = 99.5


@dataclass(frozen=True, kw_only=True)
class Superpixels:
    """Numbers that superpixels are made with.

    Attributes:
        algorithm: ``felzenszwalb`` (DenseMP), or ``slic`` with compact regions of about equal size.
        scale: Felzenszwalb's; larger gives larger regions. DenseMP: 1.
        sigma: of the Gaussian, in pixels, that comes first. DenseMP: 1.
        min_size_mm2: area of the smallest region. DenseMP: 400 pixels of 1.25 mm.
        min_size: the same in pixels, where no spacing is known.
    """

    algorithm: Literal["felzenszwalb", "slic"] = "felzenszwalb"
    scale: float = 1.0
    sigma: float = 1.0
    min_size_mm2: float = 625.0
    min_size: int = 400

    def __post_init__(self) -> None:
        if min(self.scale, self.min_size_mm2, self.min_size) <= 0 or self.sigma < 0:
            raise ValueError("'scale' and the smallest sizes should be positive, and 'sigma' not negative")

    def pixels(self, spacing_mm: tuple[float, float, float] | None) -> int:
        """Return the smallest size of a region in pixels of that spacing."""
        if spacing_mm is None:
            return self.min_size
        return max(1, round(self.min_size_mm2 / (spacing_mm[1] * spacing_mm[2])))


def superpixels(case: Case, numbers: Superpixels) -> npt.NDArray[np.integer]:
    """Return (Z, Y, X): in every slice 0 outside the body, and regions 1 to n without gaps.

    The first channel is used. Equal input gives equal regions.

    Raises: PlanError if scikit-image is missing.
    Differs: every volume is brought to 0..255 in float64 first, since the number of regions depends on range
        and type; DenseMP's numbering lost one region of each slice and left one id empty.
    """
    volume = np.asarray(case.pixels[0:1], dtype=np.float64)[0]
    smallest = numbers.pixels(case.spacing_mm)
    threshold = half_otsu(volume)
    grey = grey_levels(volume)
    result = np.zeros(volume.shape, dtype=np.int16 if volume[0].size // smallest < 2**15 else np.int32)
    for plane, source, target in zip(volume > threshold, grey, result, strict=True):
        body = _largest_filled(plane)
        if body.any():
            regions = _segment(source, numbers, smallest)
            target[body] = np.unique(regions[body], return_inverse=True)[1].ravel() + 1
    return result


def grey_levels(volume: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Map the least value to 0 and the 99.5 percentile, and what is above, to 255."""
    low, high = float(volume.min()), float(np.percentile(volume, HIGHEST_PERCENTILE))
    if not high > low:
        high = max(float(volume.max()), low + 1e-12)
    return np.clip((volume - low) / (high - low), 0.0, 1.0) * 255.0


def _segment(plane: npt.NDArray[np.float64], numbers: Superpixels, smallest: int) -> npt.NDArray[Any]:
    try:
        from skimage import segmentation
    except ImportError:
        raise PlanError(
            "superpixels need the package scikit-image: pip install 'medplan[superpixels]'."
        ) from None
    if numbers.algorithm == "felzenszwalb":
        regions = segmentation.felzenszwalb(
            plane, scale=numbers.scale, sigma=numbers.sigma, min_size=smallest, channel_axis=None
        )
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty slice gives one region and a warning
            regions = segmentation.slic(
                plane / 255.0,
                n_segments=max(1, plane.size // (2 * smallest)),
                sigma=numbers.sigma,
                compactness=0.1,
                channel_axis=None,
                start_label=0,
            )
    return np.asarray(regions)


def _largest_filled(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    parts, count = ndimage.label(mask)
    if count == 0:
        return mask
    largest = parts == int(np.bincount(parts.ravel())[1:].argmax()) + 1
    return np.asarray(ndimage.binary_fill_holes(largest), dtype=bool)
