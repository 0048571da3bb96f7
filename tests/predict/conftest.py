"""Cases in memory and predictors whose answer is known."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medplan.data.cases import Case


def _image(case: Case, lower: Any = None, upper: Any = None) -> np.ndarray:
    """Stand in for `Case.image`."""
    if lower is None:
        return case.pixels
    box = np.zeros((len(case.pixels), *(u - low for low, u in zip(lower, upper, strict=True))), np.float32)
    first = [max(0, low) for low in lower]
    last = [min(u, size) for u, size in zip(upper, case.shape, strict=True)]
    into = tuple(slice(f - low, e - low) for f, e, low in zip(first, last, lower, strict=True))
    box[(slice(None), *into)] = case.pixels[(slice(None), *map(slice, first, last))]
    return box


@pytest.fixture(autouse=True)
def readable_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    if Case(key="a/b", pixels=np.zeros((1, 1, 1, 1), np.float32)).image() is None:
        monkeypatch.setattr(Case, "image", _image)


@pytest.fixture
def make_case() -> Callable[..., Case]:
    """Return a function (shape, channels) -> case of noise."""

    def make(shape: tuple[int, int, int], channels: int = 2, seed: int = 0) -> Case:
        pixels = np.random.default_rng(seed).standard_normal((channels, *shape)).astype(np.float32)
        return Case(key="Phantom/case", pixels=pixels)

    return make


@pytest.fixture
def convolution() -> Callable[..., Tensor]:
    """Return a predictor with three outputs that mixes neighbours, so that windows disagree at their
    borders."""
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(2, 3, 3, padding=1)

    def predict(patches: Tensor, corners: Sequence[tuple[int, int, int]]) -> Tensor:
        return layer(patches)

    return predict
