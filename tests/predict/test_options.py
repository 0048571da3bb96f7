"""Whose classes are predicted, and what a method is told beside the image."""

from dataclasses import replace

import numpy as np
import pytest

from medplan.data.labels import LabelSpace
from medplan.errors import UsageError
from medplan.method import Needs
from medplan.predict.options import Options, choose_dataset, only
from tests.train.toy import toy_plan


def plan_of_two():
    plan = toy_plan()
    heart = LabelSpace(names=("atrium", "liver"), values=((1,), (2,)))
    return replace(plan, datasets=(plan.datasets[0], replace(plan.datasets[0], name="Heart", labels=heart)))


def test_of_several_datasets_the_one_is_taken_that_is_named_or_alone_has_the_classes():
    plan = plan_of_two()
    assert choose_dataset(toy_plan(), None).name == "Phantom"
    assert choose_dataset(plan, "Heart").name == "Heart"
    assert choose_dataset(plan, None, ["liver", "atrium"]).name == "Heart"


@pytest.mark.parametrize(
    ("name", "classes", "hint"),
    [
        (None, [], "--dataset-labels"),
        (None, ["liver"], "Phantom, Heart have these classes"),
        (None, ["kidney"], "--dataset-labels"),
        ("Hart", [], "did you mean 'Heart'"),
    ],
)
def test_what_is_not_clear_is_asked_back(name, classes, hint):
    with pytest.raises(UsageError, match=hint):
        choose_dataset(plan_of_two(), name, classes)


def test_a_modality_is_for_methods_that_are_told_it():
    told = Options(modality="unknown")
    assert told.prompts(Needs(told_modality=True))["modality"] == "unknown"
    assert "modality" not in Options().prompts(Needs())
    with pytest.raises(UsageError, match="--modality"):
        told.prompts(Needs())


def test_that_a_class_can_be_anywhere_is_for_methods_that_are_shown_classes():
    assert Options(anywhere=True).prompts(Needs(new_classes=True))["anywhere"] is True
    assert "anywhere" not in Options().prompts(Needs(new_classes=True))
    with pytest.raises(UsageError, match="--anywhere"):
        Options(anywhere=True).prompts(Needs())


@pytest.mark.parametrize(
    ("order", "classes", "expected"),
    [
        (None, ("core",), [0, 0, 2, 0]),
        (None, ("rim", "core"), [0, 1, 2, 0]),
        ((1, 2), ("tumour",), [0, 1, 1, 0]),
        ((1, 2), ("core",), [0, 0, 2, 0]),
        ((1, 2), ("tumour", "core"), [0, 1, 2, 0]),
    ],
)
def test_a_region_alone_holds_the_regions_inside_it(order, classes, expected):
    names, values = (
        (("tumour", "core"), ((1, 2), (2,))) if order else (("rim", "core", "x"), ((1,), (2,), (3,)))
    )
    dataset = replace(
        toy_plan().datasets[0], labels=LabelSpace(names=names, values=values, region_order=order)
    )
    label = np.array([[[0, 1, 2, 0 if order else 3]]], dtype=np.uint8)
    assert only(label, classes, dataset).ravel().tolist() == expected
