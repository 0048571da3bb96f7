"""Names and numbers of tasks and modalities."""

import pkgutil
from dataclasses import replace
from importlib import import_module

import pytest

import dataset_conversion
from medplan.data.labels import LabelSpace
from medplan.errors import MethodError
from medplan.learning.tasks import (
    added_tasks,
    append_new,
    begins_as,
    expected_tasks,
    modalities_of,
    modality_of,
    modality_of_case,
    task_names,
)
from medplan.networks.prior_weights import PUBLISHED_TASKS
from medplan.plan.schema import DatasetPlan, Normalisation


def dataset(
    name="A", channel="MR", modality="MR", classes=("liver", "spleen"), domains=None, cases=("a", "b")
):
    return DatasetPlan(
        name=name,
        channels=(channel,),
        modalities=(modality,),
        labels=LabelSpace(names=classes, values=tuple((i + 1,) for i in range(len(classes)))),
        normalisations=(Normalisation(scheme="zscore"),),
        folds=({"labelled": cases},),
        domains=domains or {},
    )


def test_the_same_organ_of_two_datasets_is_two_tasks_unless_they_share_them():
    assert task_names(dataset("A"), {}) == ("A/liver", "A/spleen")
    assert task_names(dataset("B"), {"B": "A"}) == task_names(dataset("A"), {})


def test_numbers_do_not_shift_when_datasets_come_or_go():
    known = append_new((), [*task_names(dataset("A"), {}), *task_names(dataset("C"), {})])
    grown = append_new(known, [name for n in "ABC" for name in task_names(dataset(n), {})])
    assert grown[: len(known)] == known and grown[-2:] == ("B/liver", "B/spleen")
    assert append_new(grown, task_names(dataset("C"), {})) == grown


@pytest.mark.parametrize(
    ("channel", "modality", "domain", "expected"),
    [
        ("CT", "CT", None, "CT"),
        ("PET", "PET", None, "PET"),
        ("T1 MR", "MR", None, "T1"),
        ("cine MR", "MR", "vendor A", "cine"),
        ("MR", "MR", "T2-SPIR", "T2"),
        ("MR", "MR", "bSSFP", "bSSFP"),
        ("LGE MR", "MR", None, "LGE"),
        ("MR", "MR", None, "unknown"),
        ("MR or CT", "MR", "CT", "CT"),
    ],
)
def test_the_sequence_is_read_from_the_domain_or_the_channel(channel, modality, domain, expected):
    assert modality_of(dataset(channel=channel, modality=modality), domain) == expected


def test_unknown_modalities_have_no_row_and_the_number_minus_one():
    several = dataset(domains={"a": "bSSFP", "b": "LGE"})
    assert modalities_of(several) == ("LGE", "bSSFP")
    assert modalities_of(dataset()) == ()
    assert modality_of_case(several, "LGE", ("CT", "LGE")) == 1
    assert modality_of_case(dataset(), None, ("CT", "LGE")) == -1


def test_a_modality_that_only_test_images_have_is_unknown():
    several = dataset(domains={"a": "bSSFP", "b": "LGE"}, cases=("a",))
    kept = replace(several, folds=({"labelled": ("a",), "test": ("b",)},))
    assert modalities_of(kept) == ("bSSFP",)


def test_added_tasks_come_last_or_the_plan_is_refused():
    old, new = dataset("A"), dataset("B", classes=("atrium",))
    assert added_tasks(("A/liver", "A/spleen", "B/atrium"), (old, new), (new,), {}) == ("B/atrium",)
    with pytest.raises(MethodError, match="should come last"):
        added_tasks(("B/atrium", "A/liver", "A/spleen"), (old, new), (new,), {})


LEARNT = ("CT/liver", "CT/spleen", "CT/aorta", "HeartOne/ventricle", "HeartOne/atrium", "Old/ventricle")


@pytest.mark.parametrize(
    ("task", "classes", "expected"),
    [
        ("CT/liver", ("liver",), "CT/liver"),
        ("MR/liver", ("liver", "spleen"), "CT/liver"),
        ("HeartTwo/ventricle", ("ventricle",), "HeartOne/ventricle"),
        ("Oldest/ventricle", ("ventricle",), "Old/ventricle"),
        ("Oldest/ventricle", ("ventricle", "atrium"), "HeartOne/ventricle"),
        ("MR/lung", ("lung", "liver"), "MR/lung"),
    ],
)
def test_a_new_task_begins_as_its_class_in_the_most_similar_dataset(task, classes, expected):
    own = [f"{task.partition('/')[0]}/{name}" for name in classes]
    assert begins_as(task, own, LEARNT) == expected


def test_the_expected_number_of_tasks_weighs_datasets_by_their_shares():
    few, many = dataset("A"), dataset("B", classes=("a", "b", "c", "d", "e", "f"))
    shared = [replace(few, share=3.0), replace(many, share=1.0)]
    assert expected_tasks(shared) == pytest.approx(3)
    assert expected_tasks(shared, power=0.0) == pytest.approx(1)


def test_published_rows_have_the_names_that_the_converters_give() -> None:
    cards = {}
    for found in pkgutil.iter_modules(dataset_conversion.__path__):
        module = import_module(f"dataset_conversion.{found.name}")
        if hasattr(module, "CARD"):
            cards[module.CARD.name] = module.CARD
    for task in PUBLISHED_TASKS:
        dataset, _, name = task.partition("/")
        assert name in cards[dataset].labels, task
    first = {task.partition("/")[0]: row for row, task in reversed(list(enumerate(PUBLISHED_TASKS)))}
    assert list(first.values()) == [70, 67, 64, 42, 38, 32, 19, 4, 2, 0] and len(PUBLISHED_TASKS) == 71
