"""Images and displacements back on the input's own grid."""

import numpy as np
import pytest

from medplan.data.images import Geometry
from medplan.preprocess.geometry import Alignment, Restoration
from medplan.preprocess.restore_volume import restore_volume, voxels_to_mm


def restoration(**changes):
    native = Geometry(shape=(8, 10, 12), spacing_mm=(2.0, 1.0, 1.0))
    facts = dict(
        native=native, axes=(0, 1, 2), flipped=(False, False, False), lower=(0, 0, 0), upper=(8, 10, 12),
        shape=(8, 10, 12),
    )  # fmt: skip
    return Restoration(**{**facts, **changes})


def test_on_the_same_grid_nothing_changes():
    array = np.random.default_rng(0).random((2, 8, 10, 12), dtype=np.float32)
    assert np.allclose(restore_volume(array, restoration()), array, atol=1e-5)


def test_flips_and_crops_are_undone():
    way = restoration(flipped=(True, False, True), lower=(1, 2, 3), upper=(7, 9, 12), shape=(6, 7, 9))
    native = np.random.default_rng(0).random((1, 8, 10, 12), dtype=np.float32)
    restored = restore_volume(np.ascontiguousarray(way.box(native)), way)
    assert np.allclose(way.box(restored), way.box(native), atol=1e-5)
    assert restored[0, 7].sum() == 0, "what was cropped away is 0"


def test_a_coarser_grid_is_interpolated_with_voxels_as_areas():
    way = restoration(shape=(4, 5, 6))
    ramp = np.broadcast_to(np.arange(6, dtype=np.float32), (1, 4, 5, 6)).copy()
    restored = restore_volume(ramp, way)[0, 4, 4]
    assert restored == pytest.approx([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4.25, 4.75, 5])


def test_an_aligned_case_looks_its_voxels_up_in_the_atlas():
    atlas = Geometry(shape=(8, 10, 12), spacing_mm=(2.0, 1.0, 1.0))
    shift = Alignment(matrix=(1, 0, 0, 0, 1, 0, 0, 0, 1), offset=(3.0, 0.0, 0.0), grid=atlas)
    array = np.random.default_rng(0).random((1, 8, 10, 12), dtype=np.float32)
    restored = restore_volume(array, restoration(alignment=shift))
    assert np.allclose(restored[..., :9], array[..., 3:], atol=1e-5)
    assert not restored[..., 9:].any()


def test_displacements_are_turned_into_millimetres_of_the_world():
    flow = np.zeros((3, 8, 10, 12), dtype=np.float32)
    flow[0] = 1
    assert voxels_to_mm(flow, restoration())[:, 0, 0, 0].tolist() == [0, 0, 2]
    flow[2] = 3
    mirrored = Geometry(
        shape=(8, 10, 12), spacing_mm=(2.0, 1.0, 1.0), direction=(-1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)
    )
    assert voxels_to_mm(flow, restoration(native=mirrored))[:, 0, 0, 0].tolist() == [-3, 0, 2]
