"""Random contrast changes intensities and nothing else."""

import numpy as np
import pytest
import torch

from medplan.samples.recolour import random_contrast


def image(channels: int = 1) -> torch.Tensor:
    block = torch.zeros(channels, 6, 12, 12)
    block[:, 2:4, 3:9, 3:9] = 1.0
    return block * 3 - 1


def draw(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_deviation_stay(channels: int) -> None:
    for seed in range(10):
        changed = random_contrast(image(channels), draw(seed))
        assert changed.shape == image(channels).shape
        assert torch.allclose(changed.mean(), image(channels).mean(), atol=1e-4)
        assert torch.allclose(changed.std(), image(channels).std(), atol=1e-3)


def test_the_same_numbers_give_the_same_look_and_leave_the_image_alone() -> None:
    source = image()
    assert torch.equal(random_contrast(source, draw(1)), random_contrast(source, draw(1)))
    assert not torch.equal(random_contrast(source, draw(1)), random_contrast(source, draw(2)))
    assert torch.equal(source, image())


def test_bright_and_dark_may_change_places() -> None:
    inside = [random_contrast(image(), draw(seed))[0, 3, 6, 6] for seed in range(40)]
    assert any(value < image().mean() for value in inside)
    assert any(value > image().mean() for value in inside)


def test_slices_are_left_apart() -> None:
    source = torch.zeros(1, 5, 9, 9)
    source[0, 2, 4, 4] = 1.0
    for seed in range(20):
        changed = random_contrast(source, draw(seed), keeps_slices=True)
        assert torch.allclose(changed[0, 0], changed[0, 4])
        assert torch.allclose(changed[0, 1], changed[0, 0])


def test_a_flat_image_stays_finite() -> None:
    assert random_contrast(torch.full((1, 3, 5, 5), 2.0), draw(0)).isfinite().all()
