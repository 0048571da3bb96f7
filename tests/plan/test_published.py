from collections.abc import Callable
from dataclasses import replace

import pytest

from medplan.errors import PlanError
from medplan.plan.dataset_plans import fold_roles
from medplan.plan.fingerprint import Fingerprint
from medplan.plan.overrides import Overrides
from medplan.plan.published import choose_split

WHOLE: dict[str, tuple[str, ...]] = {"labelled": ("case000", "case001"), "validation": ("case002",)}
FEW: dict[str, tuple[str, ...]] = {"labelled": ("case000",), "unlabelled": ("case001",), "test": ("case002",)}


def test_a_split_that_only_divides_is_taken_by_itself() -> None:
    split, reason = choose_split({"few": FEW, "whole": WHOLE}, None, where="Phantom")
    assert split == WHOLE
    assert "'whole'" in reason


def test_a_split_that_hides_labels_has_to_be_asked_for() -> None:
    for hiding in (FEW, {**WHOLE, "unlabelled": ("case003",)}):
        assert choose_split({"few": hiding}, None, where="Phantom")[0] is None
    assert choose_split({"few": FEW}, "few", where="Phantom")[0] == FEW


def test_the_reason_names_splits_that_were_not_taken() -> None:
    assert "--split: few" in choose_split({"few": FEW}, None, where="Phantom")[1]


def test_folds_are_drawn_where_the_user_wants_no_split() -> None:
    assert choose_split({"whole": WHOLE}, "none", where="Phantom") == (None, "")


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(PlanError, match=r"no split 'feww'.*few"):
        choose_split({"few": FEW}, "feww", where="Phantom")


def test_plans_say_which_split_they_took(fingerprint: Callable[..., Fingerprint]) -> None:
    facts = fingerprint(num_labelled=5)
    facts = replace(facts, splits={"whole": WHOLE})
    folds, reasons = fold_roles(facts, Overrides(), needs=("labelled",), several=False)
    assert folds == (WHOLE,)
    assert "published split 'whole'" in reasons["folds"]
    drawn, reasons = fold_roles(facts, Overrides(split="none"), needs=("labelled",), several=False)
    assert len(drawn) == 5
    assert "nnU-Net's" in reasons["folds"]


def test_domains_named_by_the_user_go_before_a_split(fingerprint: Callable[..., Fingerprint]) -> None:
    facts = fingerprint(num_labelled=6, domains=("CT", "MR"))
    facts = replace(facts, splits={"whole": WHOLE})
    wishes = Overrides(source_domain="CT", target_domain="MR")
    folds, _ = fold_roles(facts, wishes, needs=("labelled",), several=False)
    assert len(folds) == 3
    with pytest.raises(PlanError, match="name no domain"):
        fold_roles(facts, replace(wishes, split="whole"), needs=("labelled",), several=False)
