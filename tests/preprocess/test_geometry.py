import itertools

import numpy as np
import pytest

from medplan.data.geometry import Geometry, canonical_axes, canonical_geometry
from medplan.errors import DataError, PlanError
from medplan.plan.schema import Grid
from medplan.preprocess.crop import crop_box
from medplan.preprocess.geometry import Restoration, index_to_world
from medplan.preprocess.prepare import MAX_LOCATIONS, class_locations, prepare
from medplan.records import decode, encode

SHAPE = (4, 6, 9)
TURNS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def turned(order, signs, tilt=None):
    direction = np.zeros((3, 3))
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        direction[world, axis] = sign
    direction = direction if tilt is None else tilt @ direction
    return Geometry(
        shape=SHAPE,
        spacing_mm=(3.0, 2.0, 1.0),
        origin_mm=(5.0, -6.0, 7.0),
        direction=tuple(direction.ravel()),
    )


def tilted(degrees=(10.0, -15.0, 20.0)):
    result = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        a, b = [i for i in range(3) if i != axis]
        turn = np.eye(3)
        turn[a, a], turn[a, b], turn[b, a], turn[b, b] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        result = turn @ result
    return result


@pytest.mark.parametrize("tilt", [None, tilted()], ids=["straight", "oblique"])
@pytest.mark.parametrize(("order", "signs"), TURNS)
def test_every_orientation_becomes_canonical_and_comes_back_exactly(
    order, signs, tilt, make_plan, make_image, noise
):
    geometry = turned(order, signs, tilt)
    array = noise((1, *SHAPE))
    label = np.random.default_rng(1).integers(0, 3, SHAPE)
    image = make_image(array, geometry.spacing_mm, origin_mm=geometry.origin_mm, direction=geometry.direction)
    case, restoration = prepare(
        image, make_plan(scheme="none"), Grid(spacing_mm=None, crop="none"), label=label
    )
    assert restoration.prepared().orientation == "RAS"
    back, back_label = np.empty_like(array), np.empty_like(label)
    restoration.box(back)[...] = case.pixels
    restoration.box(back_label)[...] = case.codes
    assert np.array_equal(back, array)
    assert np.array_equal(back_label, label)
    voxels = np.argwhere(np.ones(SHAPE, bool))[::7]
    there = restoration.forward(voxels)
    assert np.array_equal(case.codes[tuple(np.rint(there).astype(int).T)], label[tuple(voxels.T)])
    native_to_world, native_origin = index_to_world(geometry)
    to_world, origin = index_to_world(restoration.prepared())
    assert np.allclose(there @ to_world.T + origin, voxels @ native_to_world.T + native_origin, atol=1e-9)


def stack(turn_degrees, thickness=8.0):
    """Return a stack of slices whose normal lies so far from the long axis of the body."""
    a = np.deg2rad(turn_degrees)
    direction = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    return Geometry(shape=SHAPE, spacing_mm=(thickness, 1.5, 1.5), direction=tuple(direction.ravel()))


def test_oblique_thick_slices_stay_as_they_are_stored():
    # Two hearts, nearly alike: the axes nearest to theirs are not.
    one, other = stack(44), stack(46)
    assert canonical_axes(one, "RAS") != canonical_axes(other, "RAS")
    for each in (one, other):
        assert each.is_oblique
        assert canonical_axes(each, "RAS", keeps_oblique=True) == ((0, 1, 2), (False, False, False))


@pytest.mark.parametrize("geometry", [stack(20), stack(70), stack(45, thickness=2.0)])
def test_slices_that_are_thin_or_near_an_axis_are_turned(geometry):
    assert not geometry.is_oblique
    assert canonical_axes(geometry, "RAS", keeps_oblique=True) == canonical_axes(geometry, "RAS")


def test_data_prepared_before_oblique_slices_were_kept_are_found(make_plan):
    old, new = Grid(spacing_mm=(4.0, 4.0, 4.0)), Grid(spacing_mm=(4.0, 4.0, 4.0), keeps_oblique=True)
    names = [make_plan().preprocessed_name(grid) for grid in (old, new)]
    assert names[0] == "4x4x4mm-8f36352f" and names[1] != names[0]


@pytest.mark.parametrize("orientation", ["LPS", "ASR", "SPL"])
def test_any_orientation_can_be_canonical(orientation):
    axes, flipped = canonical_axes(turned((1, 2, 0), (1, -1, 1)), orientation)
    assert (
        canonical_geometry(turned((1, 2, 0), (1, -1, 1)), axes=axes, flipped=flipped).orientation
        == orientation
    )


@pytest.mark.parametrize("orientation", ["RAX", "RRS", "RA", ""])
def test_an_orientation_needs_one_letter_of_each_pair(orientation):
    with pytest.raises(PlanError, match="orientation"):
        canonical_axes(turned((0, 1, 2), (1, 1, 1)), orientation)


def test_pictures_keep_their_array(make_plan, make_image, noise):
    array = noise((3, 1, 20, 30))
    case, restoration = prepare(
        make_image(array, None), make_plan(channels=3, scheme="none"), Grid(spacing_mm=None)
    )
    assert np.array_equal(case.pixels, array)
    assert case.spacing_mm is None
    assert restoration.flipped == (False, False, False)
    squeezed, _ = prepare(
        make_image(array, None), make_plan(channels=3), Grid(spacing_mm=None, shape=(1, 16, 16), crop="none")
    )
    assert squeezed.pixels.shape == (3, 1, 16, 16)


def test_the_prepared_grid_covers_what_was_kept(make_plan, make_image, noise):
    array = np.zeros((1, 12, 20, 30), np.float32)
    array[:, 3:9, 4:16, 5:25] = noise((1, 6, 12, 20))
    case, restoration = prepare(make_image(array, (3.0, 1.0, 1.5)), make_plan(), Grid(spacing_mm=(1.5,) * 3))
    assert case.shape == (12, 8, 20)
    assert restoration.box_shape == (6, 12, 20)
    assert case.spacing_mm == (1.5, 1.5, 1.5)
    corner = restoration.forward(np.array([[0.0, 0.0, 0.0]]))
    to_world, origin = index_to_world(restoration.prepared())
    assert np.allclose(corner @ to_world.T + origin, 0)


def test_a_restoration_survives_being_written(make_plan, make_image, noise):
    _, restoration = prepare(make_image(noise((1, 5, 6, 7))), make_plan(), Grid(spacing_mm=(2.0,) * 3))
    assert decode(Restoration, encode(restoration), where="test") == restoration


def test_bad_images_are_named(make_plan, make_image, noise):
    broken = noise((1, 5, 6, 7))
    broken[0, 1, 2, 3] = np.nan
    with pytest.raises(DataError, match=r"'Phantom/a'.*NaN"):
        prepare(make_image(broken), make_plan(), Grid(spacing_mm=None), key="Phantom/a")
    with pytest.raises(DataError, match=r"'Phantom/a'.*\(5, 6, 7\).*\(5, 6, 8\)"):
        prepare(
            make_image(noise((1, 5, 6, 7))),
            make_plan(),
            Grid(spacing_mm=None),
            label=np.zeros((5, 6, 8), int),
            key="Phantom/a",
        )
    with pytest.raises(PlanError, match="2 channels"):
        prepare(make_image(noise((2, 5, 6, 7))), make_plan(), Grid(spacing_mm=None))
    with pytest.raises(PlanError, match="atlas"):
        prepare(
            make_image(noise((1, 5, 6, 7))), make_plan(), Grid(spacing_mm=None, align_to="b"), key="Phantom/a"
        )


@pytest.mark.parametrize("crop", ["none", "nonzero", "body"])
def test_an_empty_image_is_kept_whole(crop):
    box = crop_box(np.zeros((1, 5, 6, 7)), crop=crop, modalities=("MR",), spacing_mm=(1.0,) * 3)
    assert box == ((0, 0, 0), (5, 6, 7))
    air = np.full((1, 5, 6, 7), -1024)
    assert crop_box(air, crop="body", modalities=("CT",), spacing_mm=(1.0,) * 3) == ((0, 0, 0), (5, 6, 7))


def test_zero_in_one_channel_only_is_kept():
    array = np.zeros((2, 8, 8, 8))
    array[0, 2:4, 2:4, 2:4] = 1
    array[1, 3:7, 3:5, 1:4] = 1
    assert crop_box(array, crop="nonzero", modalities=("MR", "MR"), spacing_mm=None) == ((2, 2, 1), (7, 5, 4))


def test_the_body_of_a_ct_is_found_without_table_and_air():
    array = np.full((1, 40, 100, 100), -1000.0)
    array[:, :, 30:60, 25:80] = 40
    array[:, :, 90:92, 10:95] = 100
    lower, upper = crop_box(array, crop="body", modalities=("CT",), spacing_mm=(2.0, 2.0, 2.0))
    assert lower[1] <= 30 and upper[1] >= 60 and lower[2] <= 25 and upper[2] >= 80
    assert lower[1] >= 20 and upper[1] <= 70 and lower[2] >= 15


def test_both_legs_belong_to_the_body():
    array = np.full((1, 40, 60, 120), -1000.0)
    array[:, :, 20:40, 20:50] = array[:, :, 20:40, 70:95] = 40
    lower, upper = crop_box(array, crop="body", modalities=("CT",), spacing_mm=(2.0, 2.0, 2.0))
    assert lower[2] <= 20 and upper[2] >= 95


def test_the_body_of_an_mr_image_keeps_dark_tissue(noise):
    array = np.abs(noise((1, 40, 80, 80))) * 3 + 1
    array[:, 5:35, 20:60, 20:60] += 60
    array[:, 5:35, 30:50, 30:50] += 200
    lower, upper = crop_box(array, crop="body", modalities=("MR",), spacing_mm=(2.0, 2.0, 2.0))
    assert lower[1] <= 20 and upper[1] >= 60
    assert upper[1] - lower[1] < 80


def test_locations_carry_their_code_and_depend_on_the_key_only():
    codes = np.zeros((30, 40, 50), np.int16)
    codes[5:25, 5:35, 5:45] = 1
    codes[7, 8, 9] = 3
    codes[0] = -1
    locations = class_locations(codes, "a/b")
    assert set(locations) == {1, 3}
    assert locations[1].shape == (MAX_LOCATIONS, 3) and locations[1].dtype == np.uint16
    assert (codes[tuple(locations[1].T.astype(int))] == 1).all()
    assert locations[3].tolist() == [[7, 8, 9]]
    assert len(np.unique(locations[1], axis=0)) == MAX_LOCATIONS
    assert np.array_equal(class_locations(codes, "a/b")[1], locations[1])
    assert not np.array_equal(class_locations(codes, "a/c")[1], locations[1])


def test_locations_forget_no_slice_of_a_class():
    codes = np.zeros((30, 40, 50), np.int16)
    codes[5:25, 5:35, 5:45] = 1
    codes[29, 0, 0] = 1
    assert np.unique(class_locations(codes, "a/b")[1][:, 0]).tolist() == [*range(5, 25), 29]


def test_what_is_turned_to_an_orientation_has_it_however_oblique_it_lies():
    rng = np.random.default_rng(0)
    for _ in range(300):
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        geometry = Geometry(shape=(2, 3, 4), spacing_mm=(1.0, 2.0, 3.0), direction=tuple(rotation.ravel()))
        axes, flipped = canonical_axes(geometry, "LPS")
        assert canonical_geometry(geometry, axes=axes, flipped=flipped).orientation == "LPS"
