"""Cases in memory and predictors whose answer is known."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from medplan.samples.cases import Case


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

    def predict(
        patches: Tensor, corners: Sequence[tuple[int, int, int]], flipped: Sequence[int] = ()
    ) -> Tensor:
        return layer(patches)

    return predict
