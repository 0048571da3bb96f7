"""Alignment to the atlas, and classes that are groups of raw labels."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medplan.cli import build_parser
from medplan.data.labels import LabelSpace
from medplan.errors import PlanError
from medplan.plan.label_groups import PRESETS, group_labels, read_label_groups
from medplan.plan.overrides import Overrides
from medplan.plan.planner import decide
from medplan.plan.schema import Plan

Make = Callable[..., Any]


@pytest.fixture
def plan(toy: Make) -> Callable[..., Plan]:
    def make(facts: Any, *, needs: dict[str, Any] | None = None, **overrides: Any) -> Plan:
        roles = {"roles": ("atlas", "unlabelled"), "aligned": True, **(needs or {})}
        return decide([facts], "supervised", toy(**roles), Overrides(**overrides), 8 * 2**30)[0]

    return make


def shifted(facts: Any, shape: tuple[int, int, int]) -> Any:
    first, *others = facts.cases
    return replace(facts, cases=(replace(first, shape=shape), *others))


def test_images_that_differ_are_aligned_to_the_atlas_and_lie_on_its_grid(
    plan: Make, fingerprint: Make
) -> None:
    facts = shifted(fingerprint(margin=40), (170, 200, 180))
    made = plan(facts, needs={"whole_image": True})
    (atlas,) = made.datasets[0].folds[0]["atlas"]
    assert made.grid.align_to == atlas and "differ" in made.reasons["grid.align_to"]
    assert made.patch_size == (53, 80, 67)


def test_masked_images_of_one_shape_and_place_are_not_aligned_again(plan: Make, fingerprint: Make) -> None:
    assert plan(fingerprint(margin=40)).grid.align_to is None
    assert plan(fingerprint(margin=0)).grid.align_to is not None


def test_the_user_may_align_or_not(plan: Make, fingerprint: Make) -> None:
    assert plan(fingerprint(), align=False).grid.align_to is None
    assert plan(fingerprint(margin=40), align=True).grid.align_to is not None
    assert plan(fingerprint(), needs={"aligned": False}).grid.align_to is None
    with pytest.raises(PlanError, match="needs an atlas"):
        plan(fingerprint(), needs={"roles": ("labelled",)}, align=True)


def test_a_group_may_be_novel_and_a_class_that_is_grouped_away_may_not(plan: Make, fingerprint: Make) -> None:
    needs = {"new_classes": True}
    groups = {"first": (1,), "second": (2,)}
    made = plan(fingerprint(), needs=needs, label_groups=groups, novel=("second",))
    assert made.datasets[0].novel == ("second",)
    with pytest.raises(PlanError, match=r"no class 'tumour'.*the classes are first, second"):
        plan(fingerprint(), needs=needs, label_groups=groups, novel=("tumour",))


def test_groups_become_the_classes_and_everything_else_background(plan: Make, fingerprint: Make) -> None:
    made = plan(fingerprint(), label_groups={"both": (1, 2, 99)})
    assert made.datasets[0].labels.names == ("both",)
    assert made.datasets[0].labels.values == ((1, 2),)
    assert "1 groups" in made.reasons["datasets.0.labels"]


def test_labels_of_no_group_become_background_and_groups_go_back_to_their_first_value() -> None:
    labels = LabelSpace(names=tuple("abcd"), values=((3,), (7,), (9,), (77,)))
    grouped = group_labels(labels, {"x": (77, 3), "y": (9,)}, where="Brains")
    raw = np.array([0, 3, 7, 9, 77, 1000])
    codes = grouped.encode(raw, where="case")
    assert codes.tolist() == [0, 1, 0, 2, 1, 0]
    assert grouped.decode(codes).tolist() == [0, 77, 0, 9, 77, 0]


def test_float_labels_with_noise_are_not_what_groups_have_to_care_for() -> None:
    raw = np.array([2.0004, 76.9996])
    preset = PRESETS["oasis14"]
    labels = LabelSpace(names=tuple(preset), values=tuple(preset.values()), others_are_background=True)
    assert labels.encode(np.rint(raw).astype(np.int16), where="case").tolist() == [1, 8]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold_every_value_once(name: str) -> None:
    values = [value for group in PRESETS[name].values() for value in group]
    assert len(values) == len(set(values)) and 0 not in values


def test_groups_come_from_a_preset_or_a_file_and_bad_ones_are_explained(tmp_path: Any) -> None:
    file = tmp_path / "groups.json"
    file.write_text('{"deep": [59, 60], "stem": 35}')
    assert read_label_groups(str(file)) == {"deep": (59, 60), "stem": (35,)}
    parsed = build_parser().parse_args(["plan", "-d", "X", "--label-groups", "oasis14", "--no-align"])
    assert parsed.label_groups == dict(PRESETS["oasis14"]) and parsed.align is False
    with pytest.raises(PlanError, match="did you mean 'oasis14'"):
        read_label_groups("oasis-14")
    file.write_text('{"deep": "59"}')
    with pytest.raises(PlanError, match="'deep' should be one or several integers"):
        read_label_groups(str(file))


def test_groups_without_a_declared_value_and_overlapping_classes_are_refused() -> None:
    labels = LabelSpace(names=("a",), values=((3,),))
    with pytest.raises(PlanError, match="none of the values of 'x'"):
        group_labels(labels, {"x": (5,)}, where="Brains")
    regions = LabelSpace(names=("a", "b"), values=((1, 2), (2,)), region_order=(1, 2))
    with pytest.raises(PlanError, match="overlap"):
        group_labels(regions, {"x": (1,)}, where="Brains")
    with pytest.raises(PlanError, match="belongs to two classes"):
        group_labels(labels, {"x": (3,), "y": (3,)}, where="Brains")
