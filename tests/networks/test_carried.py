"""Outlines that examples bring along: distances from them, where they reach, and several examples at once."""

import numpy as np
import pytest

from medplan.networks.carried import REACH_MM, Carried, carry_class
from medplan.preprocess.carry import AxisMap

MM = (8.0, 4.0, 4.0)
SAME = AxisMap((1.0,) * 3, (0.0,) * 3)


def organ(*, lower, upper, shape=(16, 32, 32)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(low, high) for low, high in zip(lower, upper, strict=True))] = True
    return mask


@pytest.fixture
def mask():
    return organ(lower=(6, 10, 12), upper=(9, 18, 20))


def carried_to(mask, *others):
    """Carry to a scan that looks like the first example, which others than it do not change."""
    target = mask.astype(np.float32)
    shots = [(one.astype(np.float32), one, MM, SAME) for one in (mask, *others)]
    return carry_class(target, MM, shots)


def distances(carried, lower, upper):
    return carried.worth(lower, upper, per_mm=1.0, per_look=0.0, absent=-REACH_MM)


def test_distances_are_those_to_the_nearest_voxel_on_the_other_side(mask):
    carried = carried_to(mask)
    found = np.stack([distances(carried, (z, 0, 0), (z + 1, 32, 32)) for z in range(16)])
    assert np.array_equal(found > 0, mask)
    inside, outside = (np.argwhere(side) * MM for side in (mask, ~mask))
    for voxel in [(7, 14, 16), (6, 10, 12), (7, 9, 12), (4, 12, 14), (7, 14, 27)]:
        others, sign = (outside, 1) if mask[voxel] else (inside, -1)
        nearest = np.sqrt(((others - np.multiply(voxel, MM)) ** 2).sum(1)).min()
        assert found[voxel] == pytest.approx(sign * min(nearest, REACH_MM))


def test_windows_are_cut_from_it_and_what_lies_beyond_is_ruled_out(mask):
    carried = carried_to(mask)
    whole = distances(carried, (7, 0, 0), (8, 32, 32))
    part = distances(carried, (7, -4, 10), (8, 20, 50))
    assert np.array_equal(part[4:, :22], whole[:20, 10:]) and (part[:, 22:] == -REACH_MM).all()
    assert carried.reaches(7) and carried.reaches(11) and not carried.reaches(0) and not carried.reaches(15)
    assert (distances(carried, (15, 0, 0), (16, 32, 32)) == -REACH_MM).all()
    assert carried.positions(5) == (5.0,)


def test_place_and_look_are_weighed_within_reach_and_the_rest_is_absent():
    inside = np.array([[[2.0, -1.0, -REACH_MM]]], np.float32)
    carried = Carried(inside, np.array([[[1.0, 3.0, 3.0]]], np.float32), (4, 5, 6), (SAME,))
    found = carried.worth((4, 5, 5), (5, 6, 10), per_mm=0.1, per_look=2.0, absent=-9.0)
    assert found.tolist() == [pytest.approx([-9.0, 2.2, 5.9, -9.0, -9.0])]


def test_of_several_examples_the_majority_draws_the_outline(mask):
    larger = organ(lower=(6, 10, 12), upper=(9, 18, 21))
    carried = carried_to(mask, larger, mask)
    assert len(carried.maps) == 3
    assert np.array_equal(distances(carried, (7, 0, 0), (8, 32, 32)) > 0, mask[7])


def test_an_example_that_fits_badly_is_outvoted_by_one_that_fits_well(mask):
    """Two examples show the organ elsewhere, in scans of noise; one shows it where it is."""
    noise = np.random.default_rng(0).standard_normal((2, *mask.shape)).astype(np.float32)
    elsewhere = organ(lower=(6, 20, 22), upper=(9, 28, 30))
    target = mask.astype(np.float32)
    shots = [(target, mask, MM, SAME), *((scan, elsewhere, MM, SAME) for scan in noise)]
    found = distances(carry_class(target, MM, shots), (7, 0, 0), (8, 32, 32)) > 0
    assert np.array_equal(found, mask[7])


def test_a_class_that_is_carried_out_of_the_scan_reaches_nowhere(mask):
    away = AxisMap((1.0,) * 3, (500.0, 0.0, 0.0))
    carried = carry_class(mask.astype(np.float32), MM, [(mask.astype(np.float32), mask, MM, away)])
    assert not any(carried.reaches(z) for z in range(16))
    assert (distances(carried, (3, 0, 0), (4, 32, 32)) == -REACH_MM).all()
