"""Episodes: what they may show, and that novel classes never appear in what is learnt from."""

from dataclasses import replace

import numpy as np
import pytest

from medplan.errors import MethodError
from medplan.samples.augment import Augmentation
from medplan.samples.cases import Case
from medplan.samples.contrast import TwoViews
from medplan.samples.episodes import LabelledEpisodes, MixedEpisodes, Slices, SuperpixelEpisodes
from medplan.samples.spatial import Spatial
from medplan.train.loader import collate
from tests.methods.densemp_case import adapt_case
from tests.train.toy import MemoryStore, phantom_case, toy_plan

PATCH = (1, 32, 32)
STILL = Spatial(rotation_probability=0, scaling_probability=0, in_plane=True)
MOVING = Spatial(rotation_probability=1, degrees=5, scaling_probability=1, scale=(0.8, 1.1), in_plane=True)
ALL = Slices(("labelled", "unlabelled"))
WITHOUT = Slices(("labelled", "unlabelled"), {"Phantom": (2,)})


@pytest.fixture
def store():
    plan = toy_plan()
    cases = {
        f"Phantom/{name}": adapt_case(phantom_case(f"Phantom/{name}", n)) for n, name in enumerate("abcd")
    }
    cases["Phantom/d"] = replace(cases["Phantom/d"], codes=None, locations={})
    return MemoryStore(cases=cases, roles=plan.roles(0), plan=plan)


def with_superpixels(store, change):
    """Return the store with other superpixels in every case."""
    cases = {
        key: replace(case, extra={"superpixels": change(np.array(case.extra["superpixels"]))})
        for key, case in store.cases.items()
    }
    return replace(store, cases=cases)


def planes_of(store, element, view):
    """Return the z of the slices of a case whose pixels are the view's (no transform)."""
    key = element["case"].split()[0 if view == "support" else -1]
    case, picture = store[key], element[f"{view}_image"][0, 0]
    inside = picture[picture != 0]
    return [z for z in range(case.shape[0]) if np.isin(inside, case.image()[0, z]).all()]


def test_both_views_of_a_superpixel_lie_on_their_pictures(store):
    sampler = SuperpixelEpisodes(PATCH, ALL, STILL, shift=0)
    for seed in range(10):
        element = sampler(store, np.random.default_rng(seed))
        assert np.array_equal(element["support_image"], element["query_image"])
        assert np.array_equal(element["support_label"], element["query_label"])
        assert element["support_label"].shape == PATCH and set(np.unique(element["query_label"])) == {0, 1}


def test_transforms_are_independent_and_the_batch_comes_to_the_patch(store):
    sampler = SuperpixelEpisodes(PATCH, ALL, MOVING)
    elements = [sampler(store, np.random.default_rng(seed)) for seed in range(4)]
    batch = Augmentation(patch_size=PATCH, mirror_axes=())(
        collate([{**element, "seed": n} for n, element in enumerate(elements)]), None
    )
    assert batch["support_image"].shape == (4, 1, *PATCH) and batch["query_label"].shape == (4, *PATCH)
    assert not (batch["support_image"] == batch["query_image"]).all()
    assert (batch["support_label"].flatten(1).sum(1) > 0).all()


def test_every_superpixel_is_drawn_the_last_one_too(store):
    def two(volume):
        volume[:] = 1
        volume[:, 14:] = 2
        return volume

    sampler = SuperpixelEpisodes(PATCH, ALL, STILL, shift=0)
    halves = set()
    for seed in range(20):
        rows = np.flatnonzero(
            sampler(with_superpixels(store, two), np.random.default_rng(seed))["query_label"].any((0, 2))
        )
        halves.add(int(rows[0]))
    assert len(halves) == 2


@pytest.mark.parametrize("number", [0, 1])
def test_slices_with_one_superpixel_serve_and_without_any_are_passed_over(store, number):
    def few(volume):
        volume[:] = 0
        volume[3] = 1
        volume[4:, :2, :2] = number  # too small to say anything
        return volume

    sampler = SuperpixelEpisodes(PATCH, ALL, STILL, shift=0)
    element = sampler(with_superpixels(store, few), np.random.default_rng(0))
    assert 3 in planes_of(store, element, "query")
    with pytest.raises(MethodError, match="no slice with a superpixel of 64 pixels"):
        sampler(with_superpixels(store, np.zeros_like), np.random.default_rng(0))


def poisoned(store):
    """Return the store with a value in every slice that shows class 2, which no sample may then hold."""
    cases = {}
    for key, case in store.cases.items():
        pixels = case.pixels.copy()
        if case.codes is not None:
            pixels[:, np.unique(case.locations[2][:, 0])] = 1e6
        else:
            pixels[:] = 1e6
        cases[key] = replace(case, pixels=pixels)
    return replace(store, cases=cases)


def test_no_slice_of_a_novel_class_is_learnt_from(store):
    still = Spatial(rotation_probability=1, scaling_probability=1, in_plane=True, elastic_probability=1)
    superpixels = SuperpixelEpisodes(PATCH, WITHOUT, still)
    labelled = LabelledEpisodes(PATCH, WITHOUT, {"Phantom": (1,)}, still)
    finetune = MixedEpisodes(labelled, superpixels, 0.5)
    views = TwoViews(32, 3, WITHOUT)
    bad = poisoned(store)
    rows = []
    for sampler in (superpixels, finetune):
        for seed in range(60):
            element = sampler(bad, np.random.default_rng(seed))
            assert max(element["support_image"].max(), element["query_image"].max()) < 1e5
            assert "Phantom/d" not in element["case"], "nobody knows what it shows"
            rows.append(element["case"])
    assert len(set(rows)) > 4
    assert all(views(bad, np.random.default_rng(seed))["case"] != "Phantom/d" for seed in range(20))


def test_all_slices_novel_is_one_sentence(store):
    cases = {key: replace(case, codes=None, locations={}) for key, case in store.cases.items()}
    with pytest.raises(MethodError, match="every slice shows a class that is kept out of training"):
        SuperpixelEpisodes(PATCH, WITHOUT, STILL)(replace(store, cases=cases), np.random.default_rng(0))


def test_an_organ_of_one_case_is_the_example_for_the_same_in_another(store):
    sampler = LabelledEpisodes(PATCH, Slices(("labelled",)), {"Phantom": (1,)}, STILL, shift=0)
    for seed in range(15):
        element = sampler(store, np.random.default_rng(seed))
        first, second = element["case"].split()
        assert first != second
        for key, view in ((first, "support"), (second, "query")):
            assert element[f"{view}_label"].any()
            fits = [(store[key].label()[z] == 1).sum() for z in planes_of(store, element, view)]
            assert element[f"{view}_label"].sum() in fits


def test_a_single_labelled_case_is_its_own_example(store):
    alone = replace(store, roles={"labelled": ("Phantom/a",)})
    sampler = LabelledEpisodes(PATCH, Slices(("labelled",)), {"Phantom": (1,)}, STILL)
    assert sampler(alone, np.random.default_rng(0))["case"] == "Phantom/a Phantom/a"
    nothing = LabelledEpisodes(PATCH, Slices(("labelled",)), {"Phantom": ()}, STILL)
    assert nothing.draw(alone, np.random.default_rng(0)) is None


def test_a_mask_that_leaves_its_slice_is_cut_and_not_wrapped(store):
    element = SuperpixelEpisodes((1, 16, 16), ALL, STILL, shift=8)(store, np.random.default_rng(1))
    assert element["support_label"].shape == (1, 16, 16)


@pytest.mark.parametrize("shape", [(3, 1, 50, 70), (1, 1, 20, 20), (1, 9, 64, 40), (4, 1, 5, 300)])
def test_views_of_pictures_of_any_size_are_standardised(store, shape):
    case = Case(key="Other/p", pixels=np.random.default_rng(0).random(shape, dtype=np.float32))
    pictures = replace(store, cases={"Other/p": case}, roles={"pretrain": ("Other/p",)})
    element = TwoViews(24, 3, ALL)(pictures, np.random.default_rng(0))
    for name in ("first_view", "second_view"):
        view = element[name]
        assert view.shape == (3, 1, 24, 24) and view.dtype == np.float32
        assert abs(view.mean()) < 1e-3 and abs(view.std() - 1) < 1e-2
    assert not np.array_equal(element["first_view"], element["second_view"])


@pytest.mark.parametrize("value", [0, 7])
def test_a_picture_of_one_value_stays_finite(store, value):
    case = Case(key="Other/p", pixels=np.full((3, 1, 40, 40), value, np.float32))
    pictures = replace(store, cases={"Other/p": case}, roles={"pretrain": ("Other/p",)})
    element = TwoViews(16, 3, ALL)(pictures, np.random.default_rng(0))
    assert np.isfinite(element["first_view"]).all() and np.abs(element["first_view"]).max() < 20
