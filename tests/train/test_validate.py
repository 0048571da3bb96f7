from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from medplan.data.labels import IGNORE, LabelSpace
from medplan.runtime import Runtime
from medplan.train.validate import class_dice, make_validator
from tests.train.toy import MemoryStore, Toy, build, phantom_case, toy_plan, toy_store

CPU = Runtime(device=torch.device("cpu"))
TWO = LabelSpace(names=("a", "b"), values=((1,), (2,)))


class Oracle(Toy):
    """Knows the labels; hears of a case and answers with its truth, shifted by nothing."""

    truth: Any = None

    def predictor(self, case, support):  # type: ignore[no-untyped-def]
        one_hot = np.moveaxis(np.eye(3, dtype=np.float32)[case.label()], -1, 0)

        def answer(patches, corners, flipped=()):  # type: ignore[no-untyped-def]
            size = patches.shape[2:]
            boxes = [tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True)) for corner in corners]
            return torch.stack([torch.from_numpy(one_hot[(slice(None), *box)]) for box in boxes])

        return answer


def test_an_oracle_scores_one_in_every_class() -> None:
    plan = toy_plan()
    validate = make_validator(plan, toy_store(plan), runtime=CPU)  # type: ignore[arg-type]
    assert validate is not None
    assert validate(build(plan, Oracle)) == {"score": 1.0, "liver": 1.0, "spleen": 1.0}


def test_a_fold_without_validation_cases_has_no_validator() -> None:
    plan = toy_plan()
    store = toy_store(plan)
    empty = type(store)(cases=store.cases, roles={"labelled": store.role("labelled")}, plan=plan)
    assert make_validator(plan, empty, runtime=CPU) is None  # type: ignore[arg-type]


def test_dice_is_twice_the_overlap_over_both() -> None:
    truth, predicted = np.array([0, 1, 1, 1, 2, 2]), np.array([0, 1, 1, 0, 1, 2])
    assert class_dice(predicted, truth, TWO) == pytest.approx({"a": 2 * 2 / 6, "b": 2 * 1 / 3})


def test_a_class_in_neither_map_is_nan_and_in_one_of_them_zero() -> None:
    dice = class_dice(np.array([0, 1]), np.array([0, 0]), TWO)
    assert dice["a"] == 0 and np.isnan(dice["b"])


def test_voxels_without_annotation_do_not_count() -> None:
    assert class_dice(np.array([1, 2, 0]), np.array([1, IGNORE, IGNORE]), TWO)["a"] == 1.0


def test_regions_overlap_and_are_scored_each_on_its_own() -> None:
    regions = LabelSpace(names=("whole", "core"), values=((1, 2), (2,)), region_order=(1, 2))
    truth, predicted = np.array([0, 1, 2, 2]), np.array([0, 2, 2, 1])
    assert class_dice(predicted, truth, regions) == pytest.approx({"whole": 1.0, "core": 0.5})


def test_novel_classes_are_reported_and_choose_no_checkpoint() -> None:
    plan = toy_plan()
    some = replace(plan, datasets=(replace(plan.datasets[0], novel=("spleen",)),))
    validate = make_validator(some, toy_store(some), runtime=CPU)
    assert validate is not None
    with torch.no_grad():
        found = validate(build(some))
    assert found["score"] == pytest.approx(found["liver"]) and "spleen" in found
    every = replace(plan, datasets=(replace(plan.datasets[0], novel=("liver", "spleen")),))
    assert make_validator(every, toy_store(every), runtime=CPU) is None


def test_examples_are_those_of_the_dataset_of_the_case_alone() -> None:
    plan = toy_plan()
    other = replace(plan.datasets[0], name="Phantoms", folds=({"support": ("f",)},))
    plan = replace(plan, datasets=(*plan.datasets, other))
    cases = {**toy_store(plan).cases, "Phantoms/f": phantom_case("Phantoms/f", 9)}
    roles = {"validation": ("Phantom/e",), "support": ("Phantom/a", "Phantoms/f")}
    shown: list[str] = []

    class Shown(Oracle):
        def predictor(self, case, support):  # type: ignore[no-untyped-def]
            shown.extend(example.key for example in support)
            return super().predictor(case, support)

    validate = make_validator(plan, MemoryStore(cases=cases, roles=roles, plan=plan), runtime=CPU)  # type: ignore[arg-type]
    assert validate is not None
    validate(build(plan, Shown))
    assert shown == ["Phantom/a"]
