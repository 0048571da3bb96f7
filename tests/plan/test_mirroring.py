"""Axes along which images are mirrored: none that could change sides."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

Make = Callable[..., Any]


@pytest.mark.parametrize(("orientation", "expected"), [("RAS", (0, 1)), (None, ())])
def test_nothing_is_flipped_that_could_change_sides(
    plan: Make, fingerprint: Make, orientation: str | None, expected: tuple[int, ...]
) -> None:
    made = plan(fingerprint(class_voxels={"left kidney": 9000}))
    for spacing in (made.grid.spacing_mm, None):  # resampled, and squeezed to a shape
        made = replace(made, grid=replace(made.grid, orientation=orientation, spacing_mm=spacing))
        assert made.mirror_axes(made.datasets[0]) == expected
    pictures = plan(fingerprint(class_voxels={"left eye": 9000}, spacing_mm=None, shape=(1, 300, 400)))
    assert pictures.mirror_axes(pictures.datasets[0]) == (1,)


def test_nothing_is_flipped_where_oblique_slices_stay_as_stored(plan: Make, fingerprint: Make) -> None:
    facts = fingerprint(class_voxels={"left kidney": 9000}, shape=(12, 200, 220), spacing_mm=(8.0, 1.5, 1.5))
    tilted = replace(facts, cases=(replace(facts.cases[0], is_oblique=True), *facts.cases[1:]))
    made = plan(tilted)
    assert made.mirror_axes(made.datasets[0]) == ()
    turned = replace(made, grid=replace(made.grid, keeps_oblique=False))
    assert turned.mirror_axes(turned.datasets[0]) == (0, 1)
    straight = plan(facts)
    assert straight.grid.keeps_oblique and straight.mirror_axes(straight.datasets[0]) == (0, 1)
