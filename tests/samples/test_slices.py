"""Slices: which show a class, and which corresponds to which."""

import numpy as np
import pytest

from medplan.samples.cases import Case
from medplan.samples.slices import allowed_slices, matching_slice, part_of, slices_of_parts, slices_with


@pytest.fixture
def case():
    codes = np.zeros((8, 4, 4), np.int16)
    codes[2:5, 1, 1] = 1
    codes[4:6, 2, 2] = 2
    locations = {code: np.argwhere(codes == code) for code in (1, 2)}
    return Case(key="A/a", pixels=codes[None].astype(np.float32), codes=codes, locations=locations)


def test_slices_are_found_by_what_they_show(case):
    assert slices_with(case, 1).tolist() == [2, 3, 4]
    assert slices_with(case, 3).tolist() == []
    assert allowed_slices(case, without=(2,)).tolist() == [0, 1, 2, 3, 6, 7]
    assert allowed_slices(case, without=(1, 2)).tolist() == [0, 1, 6, 7]
    assert allowed_slices(case).tolist() == list(range(8))


def test_the_middles_of_three_parts_are_at_sixths():
    assert slices_of_parts(range(10, 22), 3) == (12, 16, 20)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_class_in_few_slices_serves_all_parts(number):
    found = slices_of_parts(range(number), 3)
    assert len(found) == 3 and set(found) <= set(range(number))
    assert list(found) == sorted(found)


def test_parts_cover_the_extent_evenly_and_beyond_it_the_nearest_counts():
    assert [part_of(z, 3, 8, 3) for z in range(1, 11)] == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert {part_of(z, 5, 5, 3) for z in (4, 5)} == {0}


def test_equal_bodies_match_slice_by_slice_and_say_how_far_outside():
    assert matching_slice(4, (0, 9), [3, 4, 5], (0, 9)) == (4, 0.0)
    nearest, outside = matching_slice(9, (0, 9), [3, 4, 5], (0, 9))
    assert nearest == 5 and outside == pytest.approx(4 / 9)


def test_a_longer_body_is_matched_by_share():
    assert matching_slice(10, (0, 20), [1, 4, 5, 6], (0, 10)) == (5, 0.0)
    assert matching_slice(0, (0, 0), [7], (3, 3)) == (7, pytest.approx(4.0))
