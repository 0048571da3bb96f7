import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medplan.evaluate import surface
from medplan.evaluate.surface import surface_distances, surface_scores, surface_voxels

Mask = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6))
spacings = st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 3.0])] * 3)


def naive_surface(mask: Mask) -> list[tuple[int, ...]]:
    """Voxels with a face neighbour that is outside the mask or the image, one by one."""
    found = []
    for voxel in map(tuple, np.argwhere(mask)):
        for axis in range(3):
            if mask.shape[axis] == 1:
                continue
            for step in (-1, 1):
                other = list(voxel)
                other[axis] += step
                if not 0 <= other[axis] < mask.shape[axis] or not mask[tuple(other)]:
                    found.append(voxel)
    return sorted(set(found))


def naive_distances(source: Mask, target: Mask, spacing_mm: Spacing) -> npt.NDArray[np.float64]:
    first, second = (np.array(naive_surface(mask)) * spacing_mm for mask in (source, target))
    return np.sort(np.sqrt(((first[:, None] - second[None]) ** 2).sum(-1)).min(1))


def ball(radius: float, *, centre: Spacing = (15.0, 15.0, 15.0), spacing_mm: Spacing = (1, 1, 1)) -> Mask:
    axes = np.meshgrid(
        *(np.arange(0, 30, s) - c for s, c in zip(spacing_mm, centre, strict=True)), indexing="ij"
    )
    result: Mask = sum(axis**2 for axis in axes) <= radius**2
    return result


@given(masks)
def test_surface_equals_the_naive_one(mask: Mask) -> None:
    expected = naive_surface(mask) if mask.size > 1 else list(map(tuple, np.argwhere(mask)))
    assert list(map(tuple, np.argwhere(surface_voxels(mask)))) == expected


@settings(deadline=None)
@given(st.data(), spacings, st.booleans())
def test_distances_equal_the_naive_ones(data: st.DataObject, spacing_mm: Spacing, use_tree: bool) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=6))
    pair = [data.draw(hnp.arrays(bool, shape).filter(np.any)) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surface, "TREE_COST", 0.0 if use_tree else 1e9)
        outward, inward = surface_distances(*pair, spacing_mm=spacing_mm)
    np.testing.assert_allclose(np.sort(outward), naive_distances(pair[0], pair[1], spacing_mm), atol=1e-12)
    np.testing.assert_allclose(np.sort(inward), naive_distances(pair[1], pair[0], spacing_mm), atol=1e-12)


def test_identical_masks_have_no_distance() -> None:
    scores = surface_scores(ball(9), ball(9), spacing_mm=(1, 1, 1), tolerance_mm=0)
    assert (scores.hd95, scores.assd, scores.nsd) == (0, 0, 1)


def test_concentric_balls_are_the_difference_of_their_radii_apart() -> None:
    scores = surface_scores(ball(11), ball(8), spacing_mm=(1, 1, 1), tolerance_mm=2)
    assert scores.assd == pytest.approx(3, abs=0.3)
    assert scores.hd95 == pytest.approx(3, abs=0.8)
    assert scores.nsd < 0.05


def test_planes_that_are_shifted_are_apart_by_the_shift() -> None:
    first, second = np.zeros((2, 12, 6, 6), dtype=bool)
    first[2], second[5] = True, True
    assert 3 * 0.1 > 0.3
    scores = surface_scores(first, second, spacing_mm=(0.1, 1, 1), tolerance_mm=0.3)
    assert scores.hd95 == pytest.approx(0.3)
    assert scores.assd == pytest.approx(0.3)
    assert scores.nsd == 1, "a tolerance equal to the distance includes it, whatever the rounding"


def test_shifted_balls_are_never_further_apart_than_the_shift() -> None:
    outward, inward = surface_distances(ball(8), np.roll(ball(8), 4, axis=2), spacing_mm=(1, 1, 1))
    assert outward.max() == pytest.approx(4)
    assert inward.max() == pytest.approx(4)


def test_distances_scale_with_the_spacing() -> None:
    first, second = ball(8), np.roll(ball(6), 3, axis=1)
    one = surface_scores(first, second, spacing_mm=(1, 2, 3), tolerance_mm=2)
    two = surface_scores(first, second, spacing_mm=(2, 4, 6), tolerance_mm=4)
    assert two.hd95 == pytest.approx(2 * one.hd95)
    assert two.assd == pytest.approx(2 * one.assd)
    assert two.nsd == one.nsd


def test_scores_are_symmetric() -> None:
    pair = ball(8), np.roll(ball(6), 3, axis=1)
    assert surface_scores(*pair, spacing_mm=(1, 2, 3), tolerance_mm=2) == surface_scores(
        pair[1], pair[0], spacing_mm=(1, 2, 3), tolerance_mm=2
    )


def test_the_same_balls_on_finer_slices_are_as_far_apart() -> None:
    coarse = surface_scores(ball(11), ball(8), spacing_mm=(1, 1, 1), tolerance_mm=2)
    thin: Spacing = (0.5, 1, 1)
    fine = surface_scores(
        ball(11, spacing_mm=thin), ball(8, spacing_mm=thin), spacing_mm=thin, tolerance_mm=2
    )
    assert fine.assd == pytest.approx(coarse.assd, abs=0.2)


def test_position_in_the_image_does_not_matter() -> None:
    first, second = ball(5), np.roll(ball(4), 2, axis=0)
    moved = [np.roll(mask, (-10, 7, 3), (0, 1, 2)) for mask in (first, second)]
    at_home = surface_scores(first, second, spacing_mm=(1, 2, 3), tolerance_mm=2)
    assert surface_scores(*moved, spacing_mm=(1, 2, 3), tolerance_mm=2) == at_home


def test_a_picture_has_an_outline_and_no_faces_across() -> None:
    picture = np.zeros((1, 9, 9), dtype=bool)
    picture[0, 2:7, 2:7] = True
    assert surface_voxels(picture).sum() == 16


def test_one_slice_of_a_volume_is_all_surface() -> None:
    volume = np.zeros((5, 9, 9), dtype=bool)
    volume[0, 2:7, 2:7] = True
    outward, _ = surface_distances(volume, np.roll(volume, 0), spacing_mm=(1, 1, 1))
    assert outward.size == 25


def test_empty_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="not empty"):
        surface_distances(ball(5), np.zeros_like(ball(5)), spacing_mm=(1, 1, 1))
