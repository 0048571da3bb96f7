import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from medplan.data.dataset import open_dataset
from medplan.data.folds_file import read_folds
from medplan.errors import DataError, PlanError
from medplan.plan.dataset_plans import fold_roles
from medplan.plan.fingerprint import Fingerprint, extract
from medplan.plan.overrides import Overrides
from medplan.plan.published import choose_split

WHOLE: dict[str, tuple[str, ...]] = {"labelled": ("case000", "case001"), "validation": ("case002",)}
FEW: dict[str, tuple[str, ...]] = {"labelled": ("case000",), "unlabelled": ("case001",), "test": ("case002",)}


def test_a_split_that_only_divides_is_taken_by_itself() -> None:
    split, reason = choose_split({"few": FEW, "whole": WHOLE}, None, where="Phantom")
    assert split == (WHOLE,)
    assert "'whole'" in reason


def test_a_split_that_hides_labels_has_to_be_asked_for() -> None:
    for hiding in (FEW, {**WHOLE, "unlabelled": ("case003",)}):
        assert choose_split({"few": hiding}, None, where="Phantom")[0] == ()
    assert choose_split({"few": FEW}, "few", where="Phantom")[0] == (FEW,)


def test_the_reason_names_splits_that_were_not_taken() -> None:
    assert "--split: few" in choose_split({"few": FEW}, None, where="Phantom")[1]


def test_folds_are_drawn_where_the_user_wants_no_split() -> None:
    assert choose_split({"whole": WHOLE}, "none", where="Phantom") == ((), "")


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


def test_folds_chosen_by_hand_are_taken_and_keep_the_images_without_label(raw_dataset: Path) -> None:
    ids = [case.id for case in open_dataset(raw_dataset).cases if case.is_labelled]
    images = tuple(case.id for case in open_dataset(raw_dataset).cases if not case.is_labelled)
    folds = [{"train": ids[1:], "val": ids[:1]}, {"train": ids[:2], "val": ids[2:3]}]
    (raw_dataset / "splits_final.json").write_text(json.dumps(folds))
    facts = extract(open_dataset(raw_dataset), cache=raw_dataset.parent / "cache.json", workers=1)
    found, reasons = fold_roles(facts, Overrides(), needs=("labelled",), several=False)
    assert [fold["labelled"] for fold in found] == [tuple(ids[1:]), tuple(ids[:2])]
    assert [fold["validation"] for fold in found] == [tuple(ids[:1]), tuple(ids[2:3])]
    assert found[0]["unlabelled"] == images and found[1]["unlabelled"] == (ids[3], *images)
    assert "folds as in splits_final.json" in reasons["folds"]
    (raw_dataset / "splits_final.json").rename(raw_dataset.parent / "mine.json")
    facts = extract(open_dataset(raw_dataset), cache=raw_dataset.parent / "cache.json", workers=1)
    mine = read_folds(raw_dataset.parent / "mine.json")
    assert fold_roles(facts, Overrides(split=mine), needs=("labelled",), several=False)[0] == found
    wrong = Overrides(split=[{"labelled": ("case0x",)}])
    with pytest.raises(PlanError, match="no case 'case0x'"):
        fold_roles(facts, wrong, needs=("labelled",), several=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[{", "not valid JSON"),
        ("[]", "a list of folds"),
        ('[{"train": "a"}]', "a list of folds"),
        ('[{"train": ["a"], "val": ["a"]}]', "fold 0 has 'a' in 'train' and in 'val'"),
    ],
)
def test_a_file_of_folds_that_is_none_is_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "splits_final.json").write_text(text)
    with pytest.raises(DataError, match=said):
        read_folds(tmp_path / "splits_final.json")
