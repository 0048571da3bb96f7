import math
from typing import Any

import pytest

from medplan.plan.grids import (
    choose_crop,
    choose_normalisation,
    choose_orientation,
    choose_spacing,
    diameter_mm,
)

WIDE = (200.0, 200.0, 200.0)


def test_the_diameter_is_that_of_a_ball() -> None:
    assert diameter_mm(4 / 3 * math.pi * 10**3) == pytest.approx(20)


@pytest.mark.parametrize(
    ("median", "extent", "smallest", "expected"),
    [
        ((1.0, 1.0, 1.0), WIDE, 20.0, (1.5, 1.5, 1.5)),
        ((2.5, 0.8, 0.8), WIDE, 20.0, (1.5, 1.5, 1.5)),
        ((3.0, 0.8, 0.8), WIDE, 20.0, (1.5, 1.5, 1.5)),
        ((3.1, 0.8, 0.8), WIDE, 20.0, (3.1, 1.5, 1.5)),
        ((8.0, 2.0, 2.0), WIDE, 20.0, (8.0, 1.5, 1.5)),
        ((1.0, 1.0, 1.0), (40.0, 200.0, 200.0), 20.0, (1.0, 1.0, 1.0)),
        ((1.0, 1.0, 1.0), WIDE, 7.0, (1.0, 1.0, 1.0)),
        ((1.0, 1.0, 1.0), WIDE, 8.0, (1.5, 1.5, 1.5)),
        ((8.0, 0.5, 0.5), WIDE, 4.0, (8.0, 0.5, 0.5)),
        ((2.0, 2.0, 2.0), (40.0, 40.0, 40.0), 3.0, (1.5, 1.5, 1.5)),
    ],
)
def test_spacing_follows_the_stated_rule(median, extent, smallest, expected) -> None:  # type: ignore[no-untyped-def]
    spacing, reason = choose_spacing(median, extent, {"large": 50.0, "small": smallest})
    assert spacing == expected
    assert reason


def test_a_few_stray_classes_among_many_do_not_decide_the_spacing() -> None:
    many = {f"region {number}": 30.0 for number in range(95)} | {
        f"speck {number}": 1.0 for number in range(5)
    }
    assert choose_spacing((1.0, 1.0, 1.0), WIDE, many)[0] == (1.5, 1.5, 1.5)
    many |= {f"speck {number}": 1.0 for number in range(20)}
    assert choose_spacing((1.0, 1.0, 1.0), WIDE, many)[0] == (1.0, 1.0, 1.0)


def test_ct_without_labels_gets_a_fixed_window() -> None:
    scheme, reason = choose_normalisation("CT", foreground=None, masked_background=False)
    assert (scheme.low, scheme.high) == (-1000.0, 1000.0)
    assert "without labels" in reason


def test_pictures_are_not_cropped() -> None:
    assert choose_crop(("RGB",), is_picture=True)[0] == "none"


@pytest.mark.parametrize(
    ("axes", "dims", "expected"),
    [
        (["z", "z"], 2, "RAS"),
        ([None, None], 2, "RAS"),
        (["x", None], 2, "RAS"),
        (["x", "x"], 3, "RAS"),
        (["x", "x"], 2, None),
        (["x", "y"], 3, None),
    ],
)
def test_slices_are_never_cut_across(axes: list[Any], dims: int, expected: str | None) -> None:
    chosen, reason = choose_orientation(axes, dims=dims, is_picture=False, needs_canonical=False)
    assert chosen == expected
    assert ("stored" in reason) == (expected is None)
    assert choose_orientation(axes, dims=dims, is_picture=False, needs_canonical=True)[0] == "RAS"
