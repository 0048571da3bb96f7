import time

import numpy as np
import pytest

from medplan.errors import PlanError
from medplan.plan.schema import Normalisation
from medplan.preprocess.normalise import body_mask, normalise


def volume(seed=0):
    return (np.random.default_rng(seed).standard_normal((1, 6, 7, 8)) * 40 + 300).astype(np.float32)


def test_z_score_of_the_case_has_mean_zero_and_deviation_one():
    result = normalise(volume(), [Normalisation(scheme="zscore")])
    assert abs(result.mean()) < 1e-5
    assert abs(result.std() - 1) < 1e-5
    assert result.dtype == np.float32


def test_constants_of_the_dataset_clip_first():
    one = Normalisation(scheme="zscore", low=-100, high=240, mean=50.0, std=20.0)
    array = np.array([-1000, 50, 3000], np.int16).reshape(1, 1, 1, 3)
    assert np.allclose(normalise(array, [one]).ravel(), [-7.5, 0, 9.5])


def test_inside_the_body_only_its_own_voxels_count():
    array = volume()
    array[:, :, :2] = 0
    result = normalise(array, [Normalisation(scheme="zscore", nonzero_only=True)])
    assert (result[:, :, :2] == 0).all()
    assert abs(result[:, :, 2:].mean()) < 1e-5
    assert abs(result[:, :, 2:].std() - 1) < 1e-5


def test_normalising_inside_a_mask_costs_no_loop_over_voxels():
    array = np.zeros((1, 100, 100, 100), np.float32)
    array[:, 5:] = np.random.default_rng(0).random((95, 100, 100)) + 1
    start = time.process_time()
    normalise(array, [Normalisation(scheme="zscore", nonzero_only=True)])
    assert time.process_time() - start < 1


def test_holes_belong_to_the_body():
    array = np.ones((1, 5, 5, 5))
    array[:, 2, 2, 2] = 0
    assert body_mask(array) is None or body_mask(array)[2, 2, 2]
    array[:, 0] = 0
    assert not body_mask(array)[0].any()
    assert body_mask(array)[2, 2, 2]


@pytest.mark.parametrize("scheme", ["zscore", "unit"])
@pytest.mark.parametrize("value", [0.0, 7.0, -1e5, 0.1])
def test_an_image_without_contrast_becomes_zero(scheme, value):
    array = np.full((1, 3, 3, 3), value, np.float32)
    assert not normalise(array, [Normalisation(scheme=scheme)]).any()
    assert not normalise(array, [Normalisation(scheme=scheme, nonzero_only=True)]).any()


def test_unit_maps_the_given_the_percentile_or_the_whole_range_to_zero_to_one():
    array = np.arange(101, dtype=np.uint8).reshape(1, 1, 1, 101)
    whole = normalise(array, [Normalisation(scheme="unit")])
    assert np.allclose(whole.ravel(), np.arange(101) / 100)
    given = normalise(array, [Normalisation(scheme="unit", low=0.0, high=255.0)])
    assert np.allclose(given.ravel(), np.arange(101) / 255)
    middle = normalise(array, [Normalisation(scheme="unit", percentiles=(10.0, 90.0))])
    assert np.allclose(middle.ravel(), np.clip((np.arange(101) - 10) / 80, 0, 1), atol=1e-6)


def test_channels_are_normalised_on_their_own_and_the_input_is_left_alone():
    array = np.concatenate([volume(0), volume(1) * 5])
    before = array.copy()
    result = normalise(array, [Normalisation(scheme="zscore"), Normalisation(scheme="none")])
    assert np.array_equal(array, before)
    assert np.array_equal(result[1], array[1])
    with pytest.raises(PlanError, match="2 channels"):
        normalise(array, [Normalisation(scheme="none")])


def test_the_rounding_of_a_constant_is_no_contrast():
    array = np.full((1, 2, 3, 4), 1e6, np.float32)
    array[0, 0] = np.nextafter(np.float32(1e6), np.float32(2e6))
    assert array.std() > 0
    assert (normalise(array, [Normalisation(scheme="zscore")]) == 0).all()
