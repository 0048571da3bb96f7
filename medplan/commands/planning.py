"""Verbs that decide and prepare: plan, preprocess, plan_and_preprocess, methods."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from medplan.errors import CheckpointError, PlanError, UsageError
from medplan.workspace import Workspace

if TYPE_CHECKING:
    from medplan.plan.fingerprint import Fingerprint
    from medplan.plan.overrides import Overrides
    from medplan.plan.schema import DatasetPlan, Grid, Plan

__all__ = [
    "have_changed",
    "load_plan",
    "make_plans",
    "methods",
    "plan",
    "plan_and_preprocess",
    "prepare_cases",
    "preprocess",
]


def methods() -> None:
    """List the methods."""
    from medplan import registry

    for name in registry.names():
        about = import_module(registry.find(name).__module__).__doc__ or ""
        print(f"{name:<14} {about.partition(chr(10))[0]}")
    print("\n'medplan plan -d NAME' says which of them fit a dataset, and why.")


def plan(
    *, datasets: Sequence[str], method: str | None, overrides: "Overrides", workspace: Path | None
) -> None:
    """Decide everything for one method or for all that fit."""
    make_plans(Workspace.open(workspace), datasets, method, overrides, workers=None)


def preprocess(
    *, datasets: Sequence[str], method: str | None, workers: int | None, workspace: Path | None
) -> None:
    """Prepare the cases as the plans say."""
    space = Workspace.open(workspace)
    for name in datasets:
        for planned in [load_plan(space, name, method)] if method else load_plans(space, name):
            prepare_cases(space, planned, workers=workers)


def plan_and_preprocess(
    *,
    datasets: Sequence[str],
    method: str | None,
    overrides: "Overrides",
    workers: int | None,
    workspace: Path | None,
) -> None:
    """Measure the datasets, decide, and prepare the cases for the recommended method, or the one named."""
    space = Workspace.open(workspace)
    recommended = make_plans(space, datasets, method, overrides, workers=workers, refresh=True)
    prepare_cases(space, recommended, workers=workers)


def make_plans(
    space: Workspace,
    datasets: Sequence[str],
    method: str | None,
    overrides: "Overrides",
    *,
    workers: int | None,
    refresh: bool = False,
) -> "Plan":
    """Write a plan per method that fits (or for the one named), and return the recommended one.

    Args:
        workers: threads to measure datasets with.
        refresh: measure the datasets again, also those that look unchanged.
    """
    from medplan import registry, weights
    from medplan.plan.recommend import format_table, recommend
    from medplan.records import write_json
    from medplan.runtime import device_memory

    learned = dict.fromkeys(map(space.dataset_name, datasets))
    others = dict.fromkeys(map(space.dataset_name, overrides.pretrain_on))
    if both := learned.keys() & others:
        raise UsageError(f"--pretrain-on: '{min(both)}' is learnt itself; name other datasets.")
    overrides = replace(overrides, pretrain_on=tuple(others))
    facts = [_measured(space, name, workers=workers, refresh=refresh) for name in (*learned, *others)]
    classes = {name: registry.find(name) for name in ([method] if method else registry.names())}
    memory = device_memory()
    rows = recommend(facts, classes, overrides, memory)
    plans = [row.plan for row in rows if row.plan is not None]
    if not plans:
        reasons: dict[str, list[str]] = {}
        for row in rows:
            reasons.setdefault(row.reason.removesuffix("."), []).append(row.method)
        listed = "".join(f"\n  {', '.join(names)}: {reason}." for reason, names in reasons.items())
        advice = ""
        if not any(each.num_labelled for each in facts):
            advice = "\nLabel one scan or more; every method learns from a label, or is shown one."
        raise PlanError(f"No method fits.{listed}{advice}")
    print(format_table(rows))
    if len(plans) > 1:
        print(f"* recommended: 'medplan train -d {plans[0].name}' takes it, '-m METHOD' another.")
    if memory is None and overrides.gpu_memory is None:
        print(
            "There is no GPU here, and a processor is a hundred times slower: '--gpu-memory 1' plans small "
            "patches, 'medplan train --minutes N' a training of that length."
        )
    for made in plans:
        print(f"Plan: {write_json(made, space.plan_path(made.name, made.method))}")
    if plans[0].encoder_weights is not None:
        try:
            weights.locate_all(plans[0].encoder_weights)
        except CheckpointError as error:
            print(f"Before training: {error}")
    return plans[0]


def load_plan(space: Workspace, name: str, method: str | None) -> "Plan":
    """Read the plan of a dataset (or a union of them) for a method; without one, for the recommended one.

    Raises: MethodError if there is no such method, PlanError if there is no plan for it.
    """
    from medplan import registry
    from medplan.plan.schema import Plan
    from medplan.records import read_json

    if method is not None:
        path = space.plan_path(space.plan_name(name), method)
        if not path.is_file():
            registry.find(method)  # an unknown method is an error of its own
            raise PlanError(
                f"There is no plan {path}. Make it: medplan plan_and_preprocess -d {name} -m {method}"
            )
        return read_json(Plan, path)
    recommended = max(load_plans(space, name), key=lambda plan: plan.score)
    print(f"Method: {recommended.method}, recommended for these data (-m chooses another)")
    return recommended


def load_plans(space: Workspace, name: str) -> list["Plan"]:
    """Read every plan of a dataset.

    Raises: PlanError if there is none.
    """
    from medplan.plan.schema import Plan
    from medplan.records import read_json

    folder = space.plan_path(space.plan_name(name), "x").parent
    paths = sorted(path for path in folder.glob("*.json") if not path.name.startswith("fingerprint"))
    if not paths:
        raise PlanError(f"There is no plan in {folder}. Make one: medplan plan_and_preprocess -d {name}")
    return [read_json(Plan, path) for path in paths]


def prepare_cases(space: Workspace, plan: "Plan", *, workers: int | None) -> None:
    """Preprocess what the plan needs and is not there yet."""
    from medplan.data.dataset import open_dataset
    from medplan.preprocess.run import preprocess

    atlas = None
    for dataset in plan.datasets:
        folder = space.preprocessed_folder(dataset.name, dataset.preprocessed_name(plan.grid))
        atlas = preprocess(
            open_dataset(space.raw_folder(dataset.name)),
            dataset,
            plan.grid,
            folder,
            workers=workers or _cases_at_a_time(space, dataset, plan.grid),
            atlas=atlas,
        )
        print(f"Preprocessed: {folder}")


def _cases_at_a_time(space: Workspace, dataset: "DatasetPlan", grid: "Grid") -> int:
    """Return for how many of a dataset's cases there are cores and memory to prepare them side by side."""
    from medplan.machine import cores, host_memory
    from medplan.plan.fingerprint import Fingerprint
    from medplan.plan.summary import grid_shapes
    from medplan.records import read_json

    path, free = space.fingerprint_path(dataset.name), host_memory()
    if free is None or not path.is_file():
        return cores()
    facts = read_json(Fingerprint, path)
    channels = len(facts.channels)
    shapes = zip((case.shape for case in facts.cases), grid_shapes([facts], grid), strict=True)
    # Per channel the voxels as stored and as float32, and those of the new grid; then the shares of classes.
    most = max(8 * channels * prod(old) + (4 * channels + 16) * prod(new) for old, new in shapes)
    return max(1, min(cores(), free // most))


def have_changed(space: Workspace, name: str) -> bool:
    """Whether cases of a dataset, or what dataset.json says of it, have changed since it was measured."""
    from medplan.plan.fingerprint import Fingerprint
    from medplan.records import read_json

    path = space.fingerprint_path(space.dataset_name(name))
    return path.is_file() and _is_outdated(read_json(Fingerprint, path), space, name)


def _is_outdated(facts: "Fingerprint", space: Workspace, name: str) -> bool:
    from medplan.data.dataset import open_dataset

    dataset = open_dataset(space.raw_folder(name))
    now, then = (
        {case.id: (case.is_labelled, case.domain, case.patient) for case in each.cases}
        for each in (dataset, facts)
    )
    said = (dataset.channels, dataset.labels, dataset.file_ending, dataset.splits)
    return now != then or said != (facts.channels, facts.labels, facts.file_ending, facts.splits)


def _measured(space: Workspace, name: str, *, workers: int | None, refresh: bool) -> "Fingerprint":
    """Return the fingerprint of a dataset, measured anew where there is none or the dataset has changed."""
    from medplan.commands.data import extract
    from medplan.plan.fingerprint import Fingerprint
    from medplan.records import read_json

    path = space.fingerprint_path(space.dataset_name(name))
    if not refresh and path.is_file():
        known = read_json(Fingerprint, path)
        if not _is_outdated(known, space, name):
            return known
        print(f"The cases or the dataset.json of '{known.name}' have changed since they were measured.")
    return extract(space, name, workers=workers)
