"""Tasks and modalities of several datasets: what each is called, and which number it has.

A task is one class of one dataset, because datasets draw the same organ by different rules. Its name is
``<dataset>/<class>``; its number is its place in a list that is kept in the plan. New names are appended, so
that a number stays what it is.
"""

import math
import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from medplan.errors import MethodError, did_you_mean
from medplan.plan.schema import DatasetPlan, Plan

__all__ = [
    "UNKNOWN",
    "added_tasks",
    "append_new",
    "begins_as",
    "expected_tasks",
    "modalities_of",
    "modality_of",
    "modality_of_case",
    "named",
    "task_names",
]

UNKNOWN = "unknown"
"""Name of the modality of an image of which nothing is known."""

_SEQUENCES = (
    ("LGE", r"\blge\b|late.gadolinium"),
    ("bSSFP", r"\bb?ssfp\b"),
    ("cine", r"\bcine\b"),
    ("FLAIR", r"\bflair\b"),
    ("DWI", r"\bdwi\b|\badc\b|diffusion"),
    ("T1", r"\bt1"),
    ("T2", r"\bt2"),
)


def task_names(dataset: DatasetPlan, shared: Mapping[str, str]) -> tuple[str, ...]:
    """Return the task of each class of a dataset.

    Args:
        shared: per dataset another one whose tasks its classes are, where both were drawn by one rule.
    """
    owner = shared.get(dataset.name, dataset.name)
    return tuple(f"{owner}/{name}" for name in dataset.labels.names)


def begins_as(task: str, tasks: Sequence[str], learnt: Sequence[str]) -> str:
    """Return which of the learnt tasks a task begins as when another network is gone on from.

    That is itself, or else the same class in that dataset which has most classes in common with the task's
    own, and among such the one whose name is most alike (``AMOSCT``, ``AMOSMR``). A class that was not
    learnt begins as itself. Tokens of several datasets are not averaged: each finds its class where it lies
    in its own images.
    """
    dataset, _, wanted = task.partition("/")
    if task in learnt:
        return task

    def classes(of: str, names: Sequence[str]) -> set[str]:
        return {name.removeprefix(f"{of}/") for name in names if name.startswith(f"{of}/")}

    def likeness(other: str) -> tuple[int, float]:
        common = classes(dataset, tasks) & classes(other, learnt)
        return len(common), SequenceMatcher(None, dataset.lower(), other.lower()).ratio()

    owners = [owner for owner, _, name in (each.partition("/") for each in learnt) if name == wanted]
    return f"{max(owners, key=likeness)}/{wanted}" if owners else task


def append_new(known: Sequence[str], found: Sequence[str]) -> tuple[str, ...]:
    """Return the known names in their order, followed by those found that are not among them."""
    return tuple(dict.fromkeys((*known, *found)))


def expected_tasks(datasets: Sequence[DatasetPlan], *, power: float = 1.0) -> float:
    """Return the mean of a patch's number of tasks to a power, when datasets are drawn with their shares."""
    total = sum(dataset.share for dataset in datasets)
    weights = [each.share * math.pow(len(each.labels.names), power) for each in datasets]
    return sum(weights) / total


def added_tasks(
    tasks: Sequence[str],
    datasets: Sequence[DatasetPlan],
    new: Sequence[DatasetPlan],
    shared: Mapping[str, str],
) -> tuple[str, ...]:
    """Return the tasks that only the new ones among the datasets have; they have the last numbers.

    Raises: MethodError if they have not.
    """
    old = {name for each in datasets if each not in new for name in task_names(each, shared)}
    found = {name for each in new for name in task_names(each, shared)} - old
    added = tuple(name for name in tasks if name in found)
    if added and tuple(tasks[-len(added) :]) != added:
        raise MethodError("The tasks of new datasets should come last in 'config.tasks'; plan again.")
    return added


def named(names: Sequence[str], plan: Plan) -> tuple[DatasetPlan, ...]:
    """Return those datasets of a plan that are named, in the plan's order.

    Raises: MethodError if there is none of a name.
    """
    known = [dataset.name for dataset in plan.datasets]
    for name in names:
        if name not in known:
            raise MethodError(
                f"There is no dataset '{name}' in plan '{plan.name}' (config.new_datasets)"
                f"{did_you_mean(name, known)}; it has {', '.join(known)}."
            )
    return tuple(dataset for dataset in plan.datasets if dataset.name in names)


def modalities_of(dataset: DatasetPlan) -> tuple[str, ...]:
    """Return the known modalities of the images that a dataset's labels are learnt from.

    One that is seen in test images only has nothing to be learnt from, and is unknown.
    """
    cases = {case for fold in dataset.folds for case in fold.get("labelled", ())}
    domains = {dataset.domains.get(case) for case in cases}
    names = dict.fromkeys(modality_of(dataset, domain) for domain in sorted(domains, key=str))
    return tuple(name for name in names if name != UNKNOWN)


def modality_of(dataset: DatasetPlan, domain: str | None = None) -> str:
    """Return the modality of a dataset's images, or of those of one of its domains.

    It is CT, PET and the like, or the MR sequence that the domain or the first channel names; `UNKNOWN` for
    MR of which no sequence is named.
    """
    for text in (domain or "", dataset.channels[0]):
        for name, pattern in _SEQUENCES:
            if re.search(pattern, text, re.IGNORECASE):
                return name
        if text.upper() in ("CT", "PET"):
            return text.upper()
    kind = dataset.modalities[0]
    return UNKNOWN if kind in ("MR", "other") else str(kind)


def modality_of_case(
    dataset: DatasetPlan, domain: str | None, modalities: Sequence[str], *, told: str | None = None
) -> int:
    """Return the number of a case's modality, -1 if it is unknown.

    Args:
        told: the modality as the user named it, which may be ``unknown``.

    Raises: MethodError listing the modalities if there is none of the name that was told.
    """
    if told is not None and told not in (*modalities, UNKNOWN):
        listed = ", ".join((*modalities, UNKNOWN))
        raise MethodError(
            f"The model has no modality '{told}'{did_you_mean(told, modalities)}; it knows {listed}."
        )
    name = told or modality_of(dataset, domain)
    return modalities.index(name) if name in modalities else -1
