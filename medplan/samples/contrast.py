"""Two random views of one picture, for contrastive learning; pictures and volumes of any size.

Source: Wang et al. 2021, arXiv:2011.09157, as MoCo v2 (Chen et al. 2020, arXiv:2003.04297) draws its views.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medplan.errors import MethodError
from medplan.samples.cases import Case, CaseStore
from medplan.samples.episodes import Slices

__all__ = ["TwoViews"]

Element = dict[str, Any]

BLUR_SIGMA = (0.1, 2.0)


@dataclass(frozen=True)
class TwoViews:
    """``first_view`` and ``second_view``, (channels, 1, side, side): a random slice, cropped, resized,
    degraded.

    Attributes:
        side: of a view, in pixels.
        channels: of a view; a picture with another number is shown in grey.
        role: of the cases whose pictures are drawn; where the fold has none, `slices` are.
        area: lowest and highest share of the picture that a crop covers.
        jitter: brightness and contrast change by a factor 1 +- this.
        jitter_probability, blur_probability, flip_probability: of each view.

    Differs: a view is mapped to 0..1, degraded, and standardised by its own mean and deviation, as later
        phases see scans, instead of by ImageNet's. Saturation, hue and greyscale do not touch grey pictures
        and are left out.
    """

    side: int
    channels: int
    slices: Slices
    role: str = "pretrain"
    area: tuple[float, float] = (0.2, 1.0)
    jitter: float = 0.4
    jitter_probability: float = 0.8
    blur_probability: float = 0.5
    flip_probability: float = 0.5

    def __call__(self, store: CaseStore, rng: np.random.Generator) -> Element:
        keys = list(store.role(self.role))
        own = not keys
        keys = keys or self.slices.cases(store)
        for index in rng.permutation(len(keys)):
            case = store[keys[int(index)]]
            planes = self.slices.of(case) if own else np.arange(case.shape[0])
            if len(planes):
                z = int(planes[int(rng.integers(len(planes)))])
                views = {name: self.view(case, z, rng) for name in ("first_view", "second_view")}
                return {**views, "case": case.key}
        raise MethodError("There is no picture to learn from; name a dataset of pictures with --pretrain-on.")

    def view(self, case: Case, z: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """Draw one view of a slice."""
        lower, upper = self._crop(case.shape[1:], rng)
        pixels = case.image((z, *lower), (z + 1, *upper))[:, 0]
        if len(pixels) != self.channels:
            pixels = pixels.mean(0, keepdims=True)
        picture = _resize(pixels, self.side)
        low, high = float(picture.min()), float(picture.max())
        picture = (picture - low) / max(high - low, 1e-6)
        if rng.random() < self.jitter_probability:
            brightness, contrast = rng.uniform(1 - self.jitter, 1 + self.jitter, 2)
            picture = np.clip(picture * brightness, 0, 1)
            mean = picture.mean()
            picture = np.clip((picture - mean) * contrast + mean, 0, 1)
        if rng.random() < self.blur_probability:
            picture = _blur(picture, float(rng.uniform(*BLUR_SIGMA)) * self.side / 224)
        if rng.random() < self.flip_probability:
            picture = picture[..., ::-1]
        picture = (picture - picture.mean()) / max(float(picture.std()), 1e-3)
        picture = np.broadcast_to(picture, (self.channels, self.side, self.side))
        return np.ascontiguousarray(picture[:, None], dtype=np.float32)

    def _crop(
        self, shape: tuple[int, ...], rng: np.random.Generator
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        height, width = shape
        for _ in range(10):
            area = height * width * rng.uniform(*self.area)
            aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            y, x = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < y <= height and 0 < x <= width:
                top, left = int(rng.integers(height - y + 1)), int(rng.integers(width - x + 1))
                return (top, left), (top + y, left + x)
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return (top, left), (top + side, left + side)


def _resize(pixels: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """Resize (C, Y, X) by two products with matrices that interpolate, averaging where it shrinks."""
    rows, columns = (_weights(length, side) for length in pixels.shape[1:])
    return np.asarray(rows @ pixels @ columns.T, dtype=np.float32)


def _weights(length: int, side: int) -> npt.NDArray[np.float32]:
    scale = length / side
    centres = (np.arange(side) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(length)[None] - centres[:, None]) / max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - distance)
    # Centres beyond the border see nothing but it.
    weights[weights.sum(1) == 0] = 1.0
    shares: npt.NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return shares


def _blur(picture: npt.NDArray[np.float32], sigma: float) -> npt.NDArray[np.float32]:
    from scipy import ndimage

    return np.asarray(ndimage.gaussian_filter(picture, (0, sigma, sigma), mode="nearest"), dtype=np.float32)
