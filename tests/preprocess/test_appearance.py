"""The look of voxels: what it speaks for, and where it says nothing."""

import numpy as np
import pytest
from scipy import ndimage

from medplan.preprocess.appearance import inside_log_ratio

MM = (4.0, 2.0, 2.0)
SHAPE = (20, 40, 40)


def ball(radius_mm, shift=0):
    places = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(SHAPE, MM, strict=True)],
                         indexing="ij")  # fmt: skip
    return sum((place - shift) ** 2 for place in places) < radius_mm**2


def distance(mask):
    inside = ndimage.distance_transform_edt(mask, MM) - ndimage.distance_transform_edt(~mask, MM)
    return np.clip(inside, -40, 40).astype(np.float32)


def scan(mask, *, contrast, unit=1.0):
    noise = np.random.default_rng(0).standard_normal(SHAPE)
    return (unit * (noise + contrast * mask)).astype(np.float32)


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.mark.parametrize("contrast", [4.0, -4.0])
def test_a_rough_outline_moves_to_what_it_encloses_be_that_bright_or_dark(contrast):
    truth, rough = ball(18), distance(ball(18, shift=6))
    look = inside_log_ratio(scan(truth, contrast=contrast), rough, MM)
    assert dice(rough > 0, truth) < 0.75
    assert dice(look + 0.1 * rough > 0, truth) > 0.9


def test_the_unit_of_intensities_does_not_matter():
    truth, rough = ball(18), distance(ball(18, shift=6))
    one, other = (inside_log_ratio(scan(truth, contrast=4.0, unit=unit), rough, MM) for unit in (1.0, 1000.0))
    assert np.allclose(one, other, atol=0.05)


def test_without_contrast_the_look_says_little():
    look = inside_log_ratio(scan(ball(18), contrast=0.0), distance(ball(18)), MM)
    assert look.shape == SHAPE and look.dtype == np.float32
    assert abs(look).max() < 1


def test_an_even_scan_an_empty_outline_and_no_voxel_at_all_say_nothing():
    assert not inside_log_ratio(np.ones(SHAPE, np.float32), distance(ball(18)), MM).any()
    noise = scan(ball(18), contrast=4.0)
    assert not inside_log_ratio(noise, np.full(SHAPE, -40, np.float32), MM).any()
    assert inside_log_ratio(noise[:0], np.zeros((0, *SHAPE[1:]), np.float32), MM).shape == (0, *SHAPE[1:])
