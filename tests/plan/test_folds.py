from itertools import pairwise

import numpy as np
import pytest
from sklearn.model_selection import KFold

from medplan.errors import PlanError
from medplan.plan.folds import Entry, assign_roles, keep_labels, kfold, split
from medplan.plan.overrides import Overrides


def entries(labelled: int, unlabelled: int = 0, **fields: tuple[str, ...]) -> list[Entry]:
    return [
        Entry(
            id=f"c{number:02d}",
            is_labelled=number < labelled,
            **{key: values[number % len(values)] for key, values in fields.items()},
            typicality=abs(number - 3),
        )
        for number in range(labelled + unlabelled)
    ]


def roles(cases: list[Entry], **wishes: object) -> tuple[dict[str, tuple[str, ...]], ...]:
    given = {"needs": wishes.pop("needs", ("labelled",)), "published": wishes.pop("published", ())}
    return assign_roles(cases, Overrides(**wishes), where="Phantom", **given)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [5, 7, 10, 14, 41, 200])
def test_folds_equal_those_of_scikit_learn_and_so_nnunets(count: int) -> None:
    expected = KFold(5, shuffle=True, random_state=12345).split(np.arange(count))
    for (training, validation), (training_, validation_) in zip(
        kfold(count, folds=5, seed=12345), expected, strict=True
    ):
        assert training == tuple(training_)
        assert validation == tuple(validation_)


def test_split_sorts_the_ids_first() -> None:
    assert split(entries(9)[::-1]) == split(entries(9))


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_every_labelled_case_is_validated_on_exactly_once(count: int) -> None:
    folds, _ = split(entries(count))
    assert sorted(case for _, validation in folds for case in validation) == [e.id for e in entries(count)]
    assert all(training for training, _ in folds)


def test_a_single_labelled_case_is_not_validated_on() -> None:
    folds, reason = split(entries(1, 4))
    assert folds == ((("c00",), ()),)
    assert "without validation" in reason


def test_the_cases_of_a_patient_stay_on_one_side() -> None:
    cases = entries(12, patient=("a", "b", "c", "d", "e", "f"))
    folds, reason = split(cases)
    patient = {entry.id: entry.patient for entry in cases}
    for training, validation in folds:
        assert not {patient[case] for case in training} & {patient[case] for case in validation}
    assert "patient" in reason


def test_every_case_has_at_most_one_role_and_unlabelled_cases_have_theirs() -> None:
    for fold in roles(entries(7, 3)):
        flat = [case for ids in fold.values() for case in ids]
        assert sorted(flat) == [entry.id for entry in entries(7, 3)]
        assert fold["unlabelled"] == ("c07", "c08", "c09")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fewer_labels_are_a_subset_of_more(seed: int) -> None:
    cases = entries(20)
    chosen = [
        {case for case in roles(cases, labelled=amount, seed=seed)[0]["labelled"]}
        for amount in ("1", "10%", "0.2", "50%", "100%")
    ]
    assert [len(ids) for ids in chosen] == [1, 2, 3, 8, 16]
    assert all(small <= large for small, large in pairwise(chosen))


def test_other_seeds_keep_other_labels() -> None:
    kept = {roles(entries(20), labelled="3", seed=seed)[0]["labelled"] for seed in range(5)}
    assert len(kept) > 1


@pytest.mark.parametrize("amount", ["0", "-1", "17", "101%", "1.5", "some"])
def test_an_impossible_amount_of_labels_is_refused(amount: str) -> None:
    with pytest.raises(PlanError, match="--labelled"):
        keep_labels(
            [f"c{n}" for n in range(16)], amount=amount, everyone=[f"c{n}" for n in range(20)], seed=0
        )


def test_named_cases_keep_their_label_in_every_fold() -> None:
    for fold in roles(entries(10), labelled_cases=("c04", "c01")):
        assert fold["labelled"] == ("c01", "c04")
        assert "c01" not in fold["validation"]
        assert len(fold["unlabelled"]) + len(fold["validation"]) == 8


def test_labels_of_the_target_domain_are_not_used() -> None:
    cases = entries(12, domain=("CT", "MR", "US"))
    for fold in roles(cases, source_domain="CT", target_domain="MR"):
        domain = {entry.id: entry.domain for entry in cases}
        assert {domain[case] for case in fold["labelled"] + fold["validation"]} == {"CT"}
        assert {domain[case] for case in fold["unlabelled"]} == {"MR"}
        assert not any(domain[case] == "US" for ids in fold.values() for case in ids)


def test_a_left_out_domain_is_kept_for_testing() -> None:
    cases = entries(12, 3, domain=("A", "B", "C"))
    for fold in roles(cases, leave_out_domain="B"):
        assert {case for case in fold["test"]} == {entry.id for entry in cases if entry.domain == "B"}


def test_an_unknown_domain_or_case_is_refused() -> None:
    with pytest.raises(PlanError, match="the domains are CT, MR"):
        roles(entries(4, domain=("CT", "MR")), source_domain="PET")
    with pytest.raises(PlanError, match="no labelled case 'x'"):
        roles(entries(4), labelled_cases=("x",))


@pytest.mark.parametrize("role", ["atlas", "support"])
def test_an_atlas_is_one_typical_case_kept_out_of_validation(role: str) -> None:
    for fold in roles(entries(10, 2), needs=(role, "unlabelled")):
        assert fold[role] == ("c03",)
        assert "labelled" not in fold
        assert set(fold["unlabelled"]) | set(fold["validation"]) == {e.id for e in entries(10, 2)} - {"c03"}
        assert 1 <= len(fold["validation"]) <= 2


def test_the_atlas_can_be_named() -> None:
    assert all(
        fold["atlas"] == ("c07",) for fold in roles(entries(10), needs=("atlas",), labelled_cases=("c07",))
    )


def test_a_published_split_replaces_the_folds() -> None:
    split = {"labelled": ("c01",), "unlabelled": ("c02", "c05"), "validation": ("c00",), "test": ("c03",)}
    (fold,) = roles(entries(5, 2), published=[split])
    assert fold == split


def test_a_published_split_without_validation_gives_none() -> None:
    (fold,) = roles(entries(5), published=[{"labelled": ("c01", "c02"), "unlabelled": ("c03",)}])
    assert fold == {"labelled": ("c01", "c02"), "unlabelled": ("c03",)}


def test_fewer_labels_of_a_published_split_leave_the_others_unlabelled() -> None:
    (fold,) = roles(
        entries(5), published=[{"labelled": ("c01", "c02"), "validation": ("c03",)}], labelled="1"
    )
    assert len(fold["labelled"]) == len(fold["unlabelled"]) == 1
    assert {*fold["labelled"], *fold["unlabelled"]} == {"c01", "c02"}


def test_images_of_a_patient_who_is_validated_on_are_not_seen_in_training() -> None:
    cases = entries(12, domain=("CT", "MR"), patient=("a", "a", "b", "c", "d", "e"))
    patient = {entry.id: entry.patient for entry in cases}
    for fold in roles(cases, source_domain="CT", target_domain="MR"):
        validated = {patient[case] for case in fold["validation"]}
        assert not validated & {patient[case] for case in fold["labelled"] + fold["unlabelled"]}


def test_images_of_a_patient_who_is_tested_on_are_not_seen_in_training() -> None:
    cases = entries(12, domain=("A", "B"), patient=("a", "a", "b", "c", "d", "e"))
    patient = {entry.id: entry.patient for entry in cases}
    for fold in roles(cases, leave_out_domain="B"):
        tested = {patient[case] for case in fold["test"]}
        assert not tested & {patient[case] for case in fold["labelled"] + fold["validation"]}


def test_a_support_case_is_not_also_learned_from() -> None:
    for fold in roles(entries(10), needs=("support", "labelled"), labelled="3"):
        assert fold["support"] == ("c03",)
        assert len(fold["labelled"]) == 3
        assert "c03" not in fold["labelled"]


@pytest.mark.parametrize(
    "wishes", [{"needs": ("atlas", "unlabelled")}, {"needs": ("labelled",), "labelled_cases": ["c03"]}]
)
def test_nobody_is_validated_on_whose_label_is_learned_from(wishes: dict[str, object]) -> None:
    """Two scans of each patient: the second of an atlas tells nothing about other patients."""
    cases = entries(12, 4, patient=("a", "b", "c", "d", "e", "f"))
    patient = {entry.id: entry.patient for entry in cases}
    for fold in roles(cases, **wishes):
        (learned,) = fold.get("atlas") or fold["labelled"]
        assert patient[learned] not in {patient[case] for case in fold.get("validation", ())}
