"""When the planner trades time for memory."""

from dataclasses import dataclass, replace

import pytest

from medplan.errors import PlanError
from medplan.plan.lighten import fill_or_lighten
from tests.train.toy import toy_plan


@dataclass(frozen=True)
class Taken:
    total: int


def fill_with(patches, total=10):
    """Return what fills a draft: the patch by whether the draft is light; None does not fit."""

    def fill(draft):
        patch = patches[draft.config.get("light", False)]
        if patch is None:
            raise PlanError("does not fit")
        return replace(draft, patch_size=patch), Taken(total // (1 + draft.config.get("light", False)))

    return fill


def choose(heavy, light, *, total=10, lighter=True):
    draft = toy_plan()
    other = replace(draft, config={"light": True}) if lighter else None
    plan, _ = fill_or_lighten(fill_with({False: heavy, True: light}, total), draft, other, target_bytes=10)
    return plan


def test_a_large_patch_is_not_paid_for_with_time():
    assert choose((128, 128, 128), (256, 256, 256)).config == {}


def test_nor_is_the_shape_that_cases_are_squeezed_to_unless_it_does_not_fit():
    draft = replace(toy_plan(), grid=replace(toy_plan().grid, spacing_mm=None, shape=(16, 16, 16)))
    light = replace(draft, config={"light": True})
    patches = {False: (16, 16, 16), True: (64, 64, 64)}
    for total, expected in ((10, {}), (20, {"light": True})):
        plan, _ = fill_or_lighten(fill_with(patches, total), draft, light, target_bytes=10)
        assert plan.config == expected


def test_a_small_patch_is_if_it_grows_enough():
    plan = choose((64, 64, 64), (96, 96, 96))
    assert plan.config == {"light": True} and "64x64x64" in plan.reasons["config.light"]
    assert choose((64, 64, 64), (64, 64, 64)).config == {}


def test_what_does_not_fit_otherwise_is():
    assert choose(None, (64, 64, 64)).config == {"light": True}
    assert choose((64, 64, 64), (64, 64, 64), total=16).config == {"light": True}


def test_methods_that_cannot_are_planned_as_ever():
    assert choose((64, 64, 64), None, lighter=False).config == {}
    with pytest.raises(PlanError):
        choose(None, None, lighter=False)


def test_cases_are_squeezed_to_what_fits_unless_the_user_says_to_what(plan, fingerprint, toy):
    method, facts = toy(grid="squeezed", patch_multiple=16), fingerprint()
    tight = plan(facts, method=method, gpu_memory=0.57)
    assert tight.predicted_gpu_bytes <= 0.57 * 2**30 and max(tight.grid.shape) < 128
    assert tight.patch_size == tight.grid.shape and not any(side % 16 for side in tight.grid.shape)
    assert "128x128x128 would take" in tight.reasons["grid.shape"]
    assert plan(facts, method=method, gpu_memory=0.01).grid.shape == (64, 64, 64)
    for chosen in ({"patch_size": (128, 128, 128)}, {"settings": {"grid.shape": [128, 128, 128]}}):
        given = plan(facts, method=method, gpu_memory=0.57, **chosen)
        assert given.grid.shape == (128, 128, 128) and "MORE" in given.reasons["predicted_gpu_bytes"]
