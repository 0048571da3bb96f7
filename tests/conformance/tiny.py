"""A tiny plan, cases in memory and a few training steps for any method, from what it declares.

A method that needs more says so in ``tests/methods/<name>_case.py``, where each of these may be defined:

* ``CONFIG``: dict of its own numbers, to make it small;
* ``TRAINING``: dict of numbers of `Training` (the defaults are 6 iterations of 2 elements);
* ``adapt_plan(plan) -> plan`` and ``adapt_case(case) -> case``;
* ``MAY_REST``: prefixes of listed parameters that a tiny run need not move;
* ``RANK_TOLERANCE``: largest difference of weights between one rank and two (default 1e-5), or None where the
  samples of a batch learn from each other, with the reason beside it;
* ``OVERFIT``: dict of numbers of `Training` for overfitting one case, and ``OVERFIT_DICE``, what it should
reach.
"""

import importlib
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from medplan import registry
from medplan.data.labels import LabelSpace
from medplan.method import Method, Situation
from medplan.plan.schema import DatasetPlan, Grid, Normalisation, Plan, Pyramid, Training
from medplan.runtime import Runtime
from medplan.train.loop import train
from tests.train.toy import MemoryStore, phantom_case

CPU = Runtime(device=torch.device("cpu"))
ROLES = {
    "atlas": ("t",),
    "labelled": ("a", "b", "c"),
    "unlabelled": ("d", "e"),
    "support": ("s",),
    "validation": ("v",),
}
HOOKS = Path(__file__).parents[1] / "methods"


def hook(name: str, key: str, default: Any) -> Any:
    """Return what the method's hook file says about `key`."""
    if not (HOOKS / f"{name}_case.py").exists():
        return default
    return getattr(importlib.import_module(f"tests.methods.{name}_case"), key, default)


def tiny_plan(name: str, **training: Any) -> Plan:
    """Return a plan for a method on phantoms, small enough for a test."""
    kind = registry.find(name)
    needs = kind.needs
    datasets = tuple(
        _dataset(each, needs.roles) for each in ("Phantom", "Second")[: 1 + needs.several_datasets]
    )
    proposal = kind.propose(_situation(len(datasets)))
    dims = proposal.dims or needs.dims[0]
    side = -(-16 // needs.patch_multiple) * needs.patch_multiple
    deep = -(-8 // needs.patch_multiple) * needs.patch_multiple
    numbers = {"iterations": 6, "batch_size": 2, "lr": proposal.lr, "weight_decay": proposal.weight_decay}
    numbers |= {
        "seed": 1,
        "validate_every": 10**6,
        "checkpoint_every": 1,
        **hook(name, "TRAINING", {}),
        **training,
    }
    plan = Plan(
        name="Phantom",
        method=name,
        dims=dims,
        datasets=datasets,
        grid=Grid(spacing_mm=(3.0, 1.5, 1.5)),
        patch_size=(1 if dims == 2 else deep, side, side),
        encoder=proposal.encoder or needs.encoders[0],
        training=Training(**numbers),
        pyramid=_pyramid(dims) if needs.pyramid else None,
        config={**proposal.config, **hook(name, "CONFIG", {})},
    )
    adapted: Plan = hook(name, "adapt_plan", lambda same: same)(plan)
    return adapted


def tiny_store(plan: Plan, *, num_slices: int | None = None) -> Any:
    """Return phantoms for every case of the plan; slice methods get few slices unless told otherwise."""
    adapt = hook(plan.method, "adapt_case", lambda same: same)
    roles = plan.roles(0)
    least = (num_slices or (4 if plan.dims == 2 else 12), 24, 24)
    shape = tuple(map(max, plan.patch_size, least))
    keys = sorted({key for members in roles.values() for key in members})
    cases = {
        key: adapt(phantom_case(key, number, shape=(shape[0], shape[1], shape[2])))
        for number, key in enumerate(keys)
    }
    return MemoryStore(cases=cases, roles=roles, plan=plan)


def build(plan: Plan) -> Method:
    torch.manual_seed(plan.training.seed)
    return registry.find(plan.method)(plan)


def run(plan: Plan, folder: Path, *, runtime: Runtime = CPU, store: Any = None) -> Method:
    """Train in a folder, from where it stands."""
    method = build(plan)
    train(method, plan, store or tiny_store(plan), folder, fold=0, runtime=runtime, workers=0)
    return method


def only_case(plan: Plan) -> Plan:
    """Return the plan with one labelled case, which is the validation case too in name only."""
    folds = tuple({**dict(fold), "labelled": fold["labelled"][:1]} for fold in plan.datasets[0].folds)
    return replace(plan, datasets=(replace(plan.datasets[0], folds=folds), *plan.datasets[1:]))


def _dataset(name: str, roles: tuple[str, ...]) -> DatasetPlan:
    chosen = {role: ids for role, ids in ROLES.items() if role in (*roles, "labelled", "validation")}
    if "pretrain" in roles:
        chosen["pretrain"] = tuple(case for ids in chosen.values() for case in ids)
    return DatasetPlan(
        name=name,
        channels=("T1",),
        modalities=("MR",),
        labels=LabelSpace(names=("liver", "spleen"), values=((1,), (2,))),
        normalisations=(Normalisation(scheme="zscore"),),
        folds=(chosen,),
    )


def _situation(num_datasets: int) -> Situation:
    return Situation(
        num_datasets=num_datasets,
        num_labelled=3,
        num_unlabelled=2,
        num_classes=2,
        domains=(),
        modalities=("MR",),
        is_picture=False,
        spacing_mm=(3.0, 1.5, 1.5),
        median_shape=(12, 24, 24),
    )


def _pyramid(dims: int) -> Pyramid:
    stride, kernel = ((1, 2, 2), (1, 3, 3)) if dims == 2 else ((2, 2, 2), (3, 3, 3))
    return Pyramid(
        features=(4, 8, 8),
        strides=((1, 1, 1), stride, stride),
        kernels=(kernel,) * 3,
        blocks=(1, 1, 1),
        decoder_blocks=(1, 1),
    )
