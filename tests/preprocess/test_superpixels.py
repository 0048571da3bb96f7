"""Superpixels: what they are, where they are kept, and when they are made again."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from medplan.data.dataset import open_dataset
from medplan.errors import MethodError, PlanError
from medplan.plan.schema import Grid
from medplan.preprocess.extra import make
from medplan.preprocess.run import preprocess
from medplan.preprocess.superpixels import Superpixels, grey_levels, superpixels
from medplan.samples.cases import Case, CaseFiles, open_case

NUMBERS = {"superpixels": {"min_size": 20}}


@pytest.fixture
def case():
    pixels = np.full((1, 3, 40, 48), -5.0, np.float32)
    pixels[:, :2, 4:36, 4:44] = 1
    pixels[:, :2, 4:20, 4:24] = 3
    pixels[:, :2, 24:36, 30:44] = 5
    return Case(key="Phantom/a", pixels=pixels, spacing_mm=None)


@pytest.mark.parametrize("algorithm", ["felzenszwalb", "slic"])
def test_ids_have_no_gaps_and_the_air_has_none(case, algorithm):
    found = superpixels(case, Superpixels(algorithm=algorithm, min_size=20))
    assert found.dtype == np.int16 and found.shape == case.shape
    for plane in found[:2]:
        ids = np.unique(plane)
        assert ids.tolist() == list(range(len(ids))) and len(ids) > 3
    assert (found[:2, :3] == 0).all() and (found[:2, 4:36, 4:44] > 0).all()
    assert (found[2] == 0).all()


def test_superpixels_do_not_depend_on_the_scale_or_the_type_of_intensities(case):
    numbers = Superpixels(min_size=20)
    other = replace(case, pixels=(case.pixels * 100 + 700).astype(np.float64))
    assert np.array_equal(superpixels(case, numbers), superpixels(other, numbers))
    assert np.array_equal(superpixels(case, numbers), superpixels(case, numbers))
    assert grey_levels(case.pixels[0].astype(float)).max() == 255


def test_the_smallest_region_is_an_area_in_mm_where_the_spacing_is_known():
    assert Superpixels().pixels(None) == 400
    assert Superpixels().pixels((7.7, 1.25, 1.25)) == 400
    assert Superpixels().pixels((7.7, 2.5, 2.5)) == 100


def test_a_volume_without_contrast_has_no_superpixels_outside_its_body():
    flat = Case(key="Phantom/b", pixels=np.zeros((1, 2, 24, 24), np.float32))
    found = superpixels(flat, Superpixels())
    assert all(np.unique(plane).tolist() in ([0], [1]) for plane in found)


def test_unknown_volumes_and_numbers_are_one_sentence(case):
    with pytest.raises(PlanError, match="no extra volume 'superpixel'"):
        make("superpixel", case, {})
    with pytest.raises(PlanError, match="min_sise"):
        make("superpixels", case, {"min_sise": 3})


def test_a_missing_package_is_one_sentence(case, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(PlanError, match=r"pip install 'medplan\[superpixels\]'"):
        superpixels(case, Superpixels())


def test_extra_volumes_are_made_once_and_again_with_their_case(raw_dataset, tmp_path, make_plan):
    dataset = open_dataset(raw_dataset)
    planned = replace(make_plan(), extra=NUMBERS)
    grid = Grid(spacing_mm=(3.0, 3.0, 3.0))
    folder = tmp_path / "cases"
    plain = replace(planned, extra={})
    preprocess(dataset, plain, grid, folder, workers=1)
    name = dataset.cases[0].id
    path = CaseFiles(folder, name).extra("superpixels", NUMBERS["superpixels"])
    assert not path.exists() and plain.preprocessed_name(grid) == planned.preprocessed_name(grid)
    preprocess(dataset, planned, grid, folder, workers=1)
    made = path.stat().st_mtime_ns
    preprocess(dataset, planned, grid, folder, workers=1)
    assert path.stat().st_mtime_ns == made
    case = open_case(folder, f"{planned.name}/{name}", extra=planned.extra)
    assert case.volume("superpixels").shape == case.shape
    outside = case.volume("superpixels", (-1, 0, 0), (0, 4, 4))
    assert outside.shape == (1, 4, 4) and not outside.any()
    with pytest.raises(MethodError, match="no volume 'other'"):
        case.volume("other")
    other = CaseFiles(folder, name).extra("superpixels", {"min_size": 21})
    assert other != path


def test_more_regions_than_sixteen_bits_count_keep_their_numbers():
    picture = np.random.default_rng(0).random((1, 1, 260, 260)).astype(np.float32) + 1
    picture[..., 0] = 0
    found = superpixels(Case(key="a/b", pixels=picture), Superpixels(scale=1e-9, sigma=0.0, min_size=1))
    assert found.min() == 0 and found.max() > 2**15
