"""What S&D Messenger learns from: which cases are drawn, how they are shown, and what is pasted."""

import pytest
import torch

from medplan.errors import MethodError, PlanError
from tests.methods.sdmessenger_case import Store, make_batch, make_method, make_plan, step


def test_more_labelled_than_unlabelled_cases_are_all_drawn():
    roles = {"labelled": ("a", "b", "d", "e"), "unlabelled": ("c",)}
    plan = make_plan(roles=roles)
    store = Store(plan)
    drawn = {
        case
        for number in range(30)
        for pair in make_batch(plan, store, number)["case"]
        for case in pair.split()
    }
    assert drawn == {"Toy/a", "Toy/b", "Toy/c", "Toy/d", "Toy/e"}


def test_without_unlabelled_cases_the_message_names_the_role():
    plan = make_plan(roles={"labelled": ("a",)})
    with pytest.raises(MethodError, match="unlabelled"):
        make_batch(plan, Store(plan))


def test_labels_of_unlabelled_cases_are_never_read_even_if_they_are_there():
    plan = make_plan(warmup=0.0)
    store = Store(plan)
    for number in range(20):
        make_batch(plan, store, number)
    assert set(store.labels_read) == {"Toy/a", "Toy/b"}


def test_a_case_with_two_roles_is_refused():
    with pytest.raises(ValueError, match="both 'labelled' and 'unlabelled'"):
        make_plan(roles={"labelled": ("a",), "unlabelled": ("a", "b")})


def test_an_element_pastes_the_same_box_whatever_batch_it_is_in():
    plan = make_plan()
    method, batch = make_method(plan), make_batch(plan, Store(plan))
    together = method.pasting.boxes(batch["label"], batch["paste"])
    alone = method.pasting.boxes(batch["label"][1:], batch["paste"][1:])
    assert torch.equal(alone.lower_B3, together.lower_B3[1:])
    assert torch.equal(alone.upper_B3, together.upper_B3[1:])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_pasted_back_the_labelled_patch_lies_around_the_box_in_place_of_inside_it(share, monkeypatch):
    plan = make_plan(warmup=0.0, paste_back=share)
    method, batch = make_method(plan), make_batch(plan, Store(plan))
    batch["label"][0] = 0
    seen = []
    monkeypatch.setattr(method.network, "forward", lambda image, *_, **__: seen.append(image) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step(method, batch, 5)
    size, codes = len(batch["image"]), batch["label"]
    mask = method.pasting.boxes(codes, batch["paste"]).mask(codes.shape[1:]) ^ bool(share)
    mask[0] = False
    assert mask[1].any() and not mask[1].all()
    expected = torch.where(mask, batch["image"], batch["unlabelled_image"])
    assert torch.equal(seen[0][size:], expected)


def test_the_strong_view_shows_the_same_voxels_in_other_intensities():
    plan = make_plan(strong_view=True)
    batch = make_batch(plan, Store(plan))
    weak, strong = batch["unlabelled_image"], batch["strong_unlabelled_image"]
    assert weak.shape == strong.shape and not torch.equal(weak, strong)
    pair = torch.stack([weak[0].flatten(), strong[0].flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.6


def test_with_another_contrast_edges_stay_and_intensities_change_places():
    plan = make_plan(strong_view=True, contrast=1.0)
    batch = make_batch(plan, Store(plan))
    weak, strong = batch["unlabelled_image"], batch["strong_unlabelled_image"]
    assert weak.shape == strong.shape and strong.isfinite().all()
    assert not torch.equal(weak, strong)
    with pytest.raises(PlanError, match="strong_view"):
        make_method(make_plan(contrast=1.0))


def test_slices_are_not_turned_upside_down():
    (phase,) = make_method(make_plan(dims=2, turning=1.0)).phases()
    spatial = phase.sample.sampler.spatial
    assert spatial.degrees == 30 and spatial.rotation_probability == spatial.scaling_probability == 1


@pytest.mark.parametrize("alone", [False, True])
def test_labelled_patches_are_learned_from_in_the_strong_view(alone):
    plans = [make_plan(strong_view=strong, learn_from_unlabelled=not alone) for strong in (False, True)]
    weak, strong = (make_batch(plan, Store(plan)) for plan in plans)
    assert not torch.equal(weak["image"], strong["image"])
    assert torch.equal(weak["label"], strong["label"])
    if not alone:
        assert torch.equal(weak["unlabelled_image"], strong["unlabelled_image"])


def test_strong_views_may_have_the_histogram_of_an_unlabelled_case():
    plans = [make_plan(strong_view=True, match=match) for match in (0.0, 1.0)]
    plain, matched = (make_batch(plan, Store(plan)) for plan in plans)
    for key in ("image", "strong_unlabelled_image"):
        assert not torch.equal(plain[key], matched[key])
    for key in ("label", "unlabelled_image"):
        assert torch.equal(plain[key], matched[key])
    with pytest.raises(PlanError, match="strong_view"):
        make_method(make_plan(match=1.0))
