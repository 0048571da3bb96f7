import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from medplan.data.labels import IGNORE
from medplan.errors import MethodError
from medplan.randomness import generator
from medplan.samples.augment import shape_patches
from medplan.samples.cases import Case
from medplan.samples.sampling import (
    Labelled,
    LabelledAndUnlabelled,
    Mixture,
    Unlabelled,
    choose_case,
    cut,
    foreground_patch,
    random_patch,
)
from medplan.samples.spatial import Spatial, Transform, resample_patch
from medplan.train.loader import collate
from tests.train.toy import phantom_case, toy_plan, toy_store

STORE: Any = toy_store(toy_plan())
ALWAYS = Spatial(rotation_probability=1.0, scaling_probability=1.0)


def ramp(shape: tuple[int, int, int] = (20, 24, 28)) -> Case:
    """A case whose three channels are the coordinates z, y, x, and whose label is the slice."""
    pixels = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij"))
    return Case(key="Ramp/a", pixels=pixels, codes=pixels[0].astype(np.int16))


@pytest.mark.parametrize(
    "sampler",
    [
        Labelled((8, 12, 12), spatial=ALWAYS),
        Unlabelled((8, 12, 12)),
        LabelledAndUnlabelled((8, 12, 12)),
        Mixture((Labelled((8, 12, 12)), Labelled((8, 12, 12), role="validation")), (1.0, 2.0)),
    ],
)
def test_an_element_depends_on_nothing_but_the_generator(sampler: Any) -> None:
    first = sampler(STORE, generator(0, "p", 5))
    again = pickle.loads(pickle.dumps(sampler))(STORE, generator(0, "p", 5))
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[key], again[key]) for key in first if key.endswith(("image", "label")))
    assert first["case"] == again["case"]


def test_every_voxel_is_reached_and_no_patch_leaves_a_case_that_is_large_enough() -> None:
    case, size = ramp((5, 4, 6)), (3, 4, 2)
    corners = {random_patch(case, size, generator(i)) for i in range(300)}
    assert corners == {(z, 0, x) for z in range(3) for x in range(5)}


def test_a_case_smaller_than_the_patch_lies_in_its_middle() -> None:
    element = cut(ramp((2, 3, 4)), random_patch(ramp((2, 3, 4)), (6, 7, 8), generator(0)), (6, 7, 8))
    assert element["image"].shape == (3, 6, 7, 8)
    assert np.argwhere(element["image"][2] == 3).tolist() == [[z, y, 5] for z in (2, 3) for y in (2, 3, 4)]


def test_foreground_patches_hold_every_class_equally_often() -> None:
    case, size = phantom_case("Phantom/a", 0), (3, 3, 3)
    middles = []
    for index in range(400):
        label = cut(case, foreground_patch(case, size, generator(index)), size)["label"]
        middles.append(int(label[1, 1, 1]))
    assert set(middles) == {1, 2}
    assert 150 < middles.count(1) < 250, "classes are drawn before voxels, whatever their size"


def test_oversampling_centres_the_share_that_it_promises() -> None:
    sampler = Labelled((1, 1, 1), oversample=0.8)
    hits = [sampler(STORE, generator(index))["label"].item() > 0 for index in range(300)]
    fraction = np.mean([(STORE[key].label() > 0).mean() for key in STORE.role("labelled")])
    assert np.mean(hits) == pytest.approx(0.8 + 0.2 * fraction, abs=0.08)


def test_a_case_without_foreground_gives_a_random_patch() -> None:
    without = [{}, {0: np.zeros((9, 3), int), IGNORE: np.zeros((9, 3), int), 1: np.zeros((0, 3), int)}]
    for locations in without:
        case = replace(ramp(), locations=locations)
        assert foreground_patch(case, (4, 4, 4), generator(3)) == random_patch(case, (4, 4, 4), generator(3))


def test_a_role_without_cases_is_named() -> None:
    with pytest.raises(MethodError, match="no case with the role 'atlas', which this method draws from"):
        choose_case(STORE, "atlas", generator(0))
    with pytest.raises(MethodError, match="no suitable case with the role 'labelled'"):
        choose_case(STORE, "labelled", generator(0), accept=lambda case: False)


def test_an_unlabelled_element_has_no_label() -> None:
    assert "label" not in Unlabelled((4, 4, 4), role="labelled")(STORE, generator(0))


def test_a_mixture_keeps_its_shares() -> None:
    mixture = Mixture((Labelled((1, 1, 1)), Labelled((1, 1, 1), role="validation")), (1.0, 3.0))
    assert np.mean([mixture(STORE, generator(i))["source"] for i in range(400)]) == pytest.approx(
        0.75, abs=0.08
    )
    with pytest.raises(MethodError, match="as many shares"):
        Mixture((), ())


def test_only_transformed_patches_are_read_enlarged() -> None:
    sampler = Labelled((8, 12, 12), spatial=Spatial())
    for index in range(50):
        element = sampler(STORE, generator(index))
        size = (8, 12, 12) if element["transform"] is None else element["transform"].box
        assert element["image"].shape[1:] == element["label"].shape == size


def test_a_transform_maps_coordinates_as_its_matrix_says() -> None:
    """On coordinate ramps, linear interpolation is exact: the result is the affine map itself."""
    case, size, lower = ramp((40, 40, 40)), (6, 8, 10), (17, 16, 15)
    for index in range(20):
        transform = ALWAYS.draw(generator(index), size)
        assert transform is not None
        element = cut(case, lower, size, transform=transform)
        batch = shape_patches(collate([element]), size)
        offsets = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in size), indexing="ij"))
        centre = np.array(lower) + (np.array(size) - 1) / 2
        expected = (
            np.einsum("ij,j...->i...", np.array(transform.matrix), offsets) + centre[:, None, None, None]
        )
        assert np.allclose(batch["image"][0].numpy(), expected, atol=1e-3)
        assert np.abs(batch["label"][0].numpy() - expected[0]).max() <= 0.5 + 1e-3


def test_scaling_alone_fills_the_patch_from_the_box_exactly() -> None:
    spatial = Spatial(rotation_probability=0.0, scaling_probability=1.0)
    transform = spatial.draw(generator(1), (6, 8, 10))
    assert transform is not None and transform.scales_only
    element = cut(ramp((40, 40, 40)), (17, 16, 15), (6, 8, 10), transform=transform)
    general = Transform(matrix=transform.matrix, box=transform.box, scales_only=False)
    image = collate([element])["image"][0]
    quick = resample_patch(image, transform, (6, 8, 10), mode="linear")
    slow = resample_patch(image, general, (6, 8, 10), mode="linear")
    # Inside; at the border the general way blends with the zeros outside.
    assert np.allclose(quick[:, 1:-1, 1:-1, 1:-1], slow[:, 1:-1, 1:-1, 1:-1], atol=1e-3)


@pytest.mark.parametrize(
    ("patch_size", "in_plane", "degrees"),
    [
        ((1, 64, 64), True, 180.0),
        ((1, 64, 128), True, 15.0),
        ((16, 64, 64), True, 180.0),
        ((64, 64, 64), False, 30.0),
    ],
)
def test_ranges_follow_the_shape_of_the_patch(patch_size: Any, in_plane: bool, degrees: float) -> None:
    spatial = Spatial.for_patch(patch_size)
    assert (spatial.in_plane, spatial.degrees) == (in_plane, degrees)


def test_thick_slices_stay_what_they_are() -> None:
    spatial = Spatial(
        rotation_probability=1.0, scaling_probability=1.0, elastic_probability=1.0, in_plane=True
    )
    case = ramp((9, 60, 60))
    transform = spatial.draw(generator(0), (4, 16, 16))
    assert transform is not None and transform.box[0] == 4
    batch = shape_patches(collate([cut(case, (3, 20, 20), (4, 16, 16), transform=transform)]), (4, 16, 16))
    assert np.allclose(batch["image"][0, 0], np.arange(3, 7)[:, None, None], atol=1e-4)


def test_elastic_deformation_moves_by_no_more_than_it_says_and_leaves_global_generators_alone() -> None:
    spatial = Spatial(
        rotation_probability=0, scaling_probability=0, elastic_probability=1.0, elastic_voxels=3.0
    )
    state = np.random.get_state()[1].copy()
    transform = spatial.draw(generator(2), (16, 16, 16))
    assert np.array_equal(state, np.random.get_state()[1])
    assert transform is not None and transform.displacement is not None
    longest = np.abs(transform.displacement).max()
    assert 0 < longest <= 3.0 + 1e-3
    element = cut(ramp((40, 40, 40)), (12, 12, 12), (16, 16, 16), transform=transform)
    batch = shape_patches(collate([element]), (16, 16, 16))
    straight = cut(ramp((40, 40, 40)), (12, 12, 12), (16, 16, 16))["image"]
    moved = np.abs(batch["image"][0].numpy() - straight)
    assert 0 < moved.max() <= longest + 1e-3
    again = spatial.draw(generator(2), (16, 16, 16))
    assert again is not None and np.array_equal(transform.displacement, again.displacement)


def test_a_rotation_keeps_lengths_and_its_box_holds_the_whole_patch() -> None:
    size = (8, 12, 10)
    turns = Spatial(rotation_probability=1.0, scaling_probability=0.0, degrees=180.0)
    bends = replace(turns, elastic_probability=1.0, elastic_voxels=6.0)
    for index in range(20):
        turned, bent = (spatial.draw(generator(index), size) for spatial in (turns, bends))
        assert turned is not None and bent is not None
        matrix = np.array(turned.matrix)
        assert np.allclose(matrix @ matrix.T, np.eye(3)) and np.linalg.det(matrix) == pytest.approx(1)
        for transform in (turned, bent):
            found = resample_patch(torch.ones(1, *transform.box), transform, size, mode="linear")
            assert float(found.min()) > 0.999, "voxels beyond the box are 0"
