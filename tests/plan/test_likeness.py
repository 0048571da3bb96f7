"""What the atlas is chosen by: how much an image looks like the others, however each of them lies."""

import numpy as np
import pytest
import SimpleITK as sitk

from medplan.data.images import Geometry
from medplan.plan.folds import Entry, assign_roles
from medplan.plan.likeness import SIDE, likeness, thumbnail
from medplan.plan.overrides import Overrides

SHAPE = (40, 44, 36)


def head(*, hot: float = 0.5, centre=(0.0, 0.0, 0.0), shape=SHAPE, stretch: float = 1.0):
    """A bright egg, brighter in front, with a dark hole; `stretch` lengthens it from head to foot."""
    z, y, x = (
        (np.arange(side) - (side - 1) / 2 - middle).reshape([-1 if axis == own else 1 for axis in range(3)])
        for own, (side, middle) in enumerate(zip(shape, centre, strict=True))
    )
    inside = (z / (12 * stretch)) ** 2 + (y / 14) ** 2 + (x / 11) ** 2 < 1
    hole = (z / (4 * stretch)) ** 2 + ((y - 5) / 4) ** 2 + (x / 4) ** 2 < 1
    return np.where(inside, np.where(hole, 0.1, 0.6 + hot * y / 28), 0.0)


def small(volume, spacing=(1.0, 1.0, 1.0), direction=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)):
    geometry = Geometry(shape=volume.shape, spacing_mm=spacing, direction=direction)
    found = thumbnail(volume, geometry, threshold=0.01, highest=0.9)
    assert found is not None and found.shape == (SIDE,) * 3
    return found


def correlation(one, other):
    return np.corrcoef(one.ravel().astype(float), other.ravel().astype(float))[0, 1]


def test_place_and_size_do_not_matter_but_looks_do():
    still = small(head())
    moved = small(head(centre=(3, -4, 2), shape=(48, 50, 44)))
    longer = small(head(stretch=1.25, shape=(50, 44, 36)))
    other = small(head(hot=-0.5))
    assert correlation(still, moved) > 0.99 and correlation(still, longer) > 0.97
    assert correlation(still, other) < 0.95


def test_the_stored_order_of_axes_does_not_matter():
    volume = head()
    flipped = np.ascontiguousarray(volume[::-1, :, ::-1])
    direction = (-1.0, 0, 0, 0, 1.0, 0, 0, 0, -1.0)
    assert correlation(small(volume), small(flipped, direction=direction)) > 0.999
    turned = sitk.PermuteAxes(sitk.GetImageFromArray(volume), (2, 0, 1))
    array, cosines = sitk.GetArrayFromImage(turned), turned.GetDirection()
    assert correlation(small(volume), small(array, direction=cosines)) > 0.999


def test_likeness_is_the_mean_correlation_with_all_others():
    rng = np.random.default_rng(0)
    base = rng.random((SIDE,) * 3)
    group = [(base + 0.3 * rng.random(base.shape)).astype(np.float16) for _ in range(4)]
    group.append(rng.random(base.shape).astype(np.float16))
    found = likeness([*group, None])
    table = np.corrcoef([one.ravel().astype(float) for one in group])
    expected = (table.sum(axis=1) - 1) / 4
    assert found[:5] == pytest.approx(expected, abs=1e-5) and found[5] is None
    assert min(found[:5]) == found[4]


def test_pictures_empty_images_and_two_cases_say_nothing():
    flat = Geometry(shape=(1, 40, 40), spacing_mm=None)
    assert thumbnail(np.ones((1, 40, 40)), flat, threshold=0.0, highest=1.0) is None
    nothing = Geometry(shape=SHAPE, spacing_mm=(1.0, 1.0, 1.0))
    assert thumbnail(np.zeros(SHAPE), nothing, threshold=0.0, highest=1.0) is None
    assert likeness([small(head()), small(head(hot=0.2))]) == (None, None)


def atlas_of(entries, **given):
    folds, reasons = assign_roles(entries, Overrides(**given), needs=("atlas", "unlabelled"), where="Brains")
    return folds[0]["atlas"][0], reasons["folds.atlas"]


def test_the_atlas_is_the_case_most_like_the_others_that_shows_every_class():
    entries = [
        Entry(id="a", is_labelled=True, typicality=0.1, likeness=0.5),
        Entry(id="b", is_labelled=True, typicality=0.9, likeness=0.8),
        Entry(id="c", is_labelled=True, typicality=0.2, likeness=0.9, lacking=1),
        Entry(id="d", is_labelled=False, typicality=0.0, likeness=0.99),
    ]
    chosen, reason = atlas_of(entries)
    assert chosen == "b" and "most like all others" in reason and "0.800" in reason
    assert atlas_of(entries, labelled_cases=("a",))[0] == "a"


def test_where_likeness_is_not_known_the_size_decides():
    entries = [
        Entry(id="a", is_labelled=True, typicality=0.1, likeness=0.5),
        Entry(id="b", is_labelled=True, typicality=0.9),
    ]
    chosen, reason = atlas_of(entries)
    assert chosen == "a" and "median size" in reason
