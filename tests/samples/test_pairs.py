"""Pairs of atlas and image."""

import numpy as np
import pytest

from medplan.errors import MethodError
from medplan.samples.pairs import AtlasAndImage, around, beside
from tests.train.toy import MemoryStore, phantom_case, toy_plan

SIZE = (16, 24, 24)


@pytest.fixture
def store():
    shapes = {"Phantom/a": (16, 24, 24), "Phantom/u": (12, 20, 22), "Phantom/p": (16, 24, 24)}
    cases = {
        key: phantom_case(key, number, shape=shape) for number, (key, shape) in enumerate(shapes.items())
    }
    roles = {"atlas": ("Phantom/a",), "unlabelled": ("Phantom/u",), "pretrain": ("Phantom/p",)}
    return MemoryStore(cases=cases, roles=roles, plan=toy_plan())


def test_the_atlas_comes_with_its_label_and_the_image_without(store):
    element = AtlasAndImage(SIZE)(store, np.random.default_rng(0))
    assert element["case"] == "Phantom/a Phantom/u"
    assert np.array_equal(element["label"], store["Phantom/a"].codes)
    assert "unlabelled_label" not in element
    assert element["unlabelled_image"].shape == (1, *SIZE)


def test_smaller_images_are_centred_and_so_lie_centre_on_centre(store):
    element = AtlasAndImage(SIZE)(store, np.random.default_rng(0))
    image = store["Phantom/u"].image()
    assert np.array_equal(element["unlabelled_image"][:, 2:14, 2:22, 1:23], image)
    assert beside(store["Phantom/a"], store["Phantom/u"], (-2, -2, -1)) == (0, 0, 0)


def test_all_named_roles_are_drawn_from_and_a_missing_one_is_named(store):
    rng = np.random.default_rng(0)
    both = {AtlasAndImage(SIZE, ("unlabelled", "pretrain"))(store, rng)["case"] for _ in range(20)}
    assert both == {"Phantom/a Phantom/u", "Phantom/a Phantom/p"}
    with pytest.raises(MethodError, match="no case of role 'test'"):
        AtlasAndImage(SIZE, ("test",))(store, rng)


def test_around_a_case_the_patch_holds_it_where_it_says(store):
    case = store["Phantom/u"]
    lower, upper, inner = around(case, SIZE)
    assert np.array_equal(case.image(lower, upper)[(slice(None), *inner)], case.image())
