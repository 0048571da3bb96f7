"""What a user asks of the planner in place of its own rules, and how it reaches the plan."""

import ast
import dataclasses
import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from medplan.errors import PlanError, did_you_mean
from medplan.plan.schema import Plan, Training
from medplan.records import decode, encode

__all__ = ["Overrides", "apply_settings", "parse_setting", "voxels_of"]


LIKE = (
    "dims", "encoder", "patch_size", "training.batch_size", "grid.spacing_mm", "grid.shape", "grid.crop",
    "grid.orientation", "grid.keeps_oblique",
)  # fmt: skip
"""What is taken from the plan of the run that training starts from."""


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Choices of the user; None leaves it to the planner. Each that is made is named as the reason.

    Attributes:
        name: name of the plan; needed for a union of datasets if the joined names do not serve.
        spacing: target spacing in mm (z, y, x); one number stands for all three axes.
        patch_size: voxels (z, y, x); two numbers (y, x) for 2-D.
        batch_size, iterations, lr, seed: as in `medplan.plan.schema.Training`.
        dims: 2 or 3.
        encoder, encoder_weights: as in `medplan.plan.schema.Plan`.
        gpu_memory: memory target of a training step in GB (2^30 bytes).
        labelled: how many of a fold's labelled training cases keep their label: ``20%``, ``0.2`` or ``4``.
        labelled_cases: ids of the training cases that keep their label; an atlas or a support case is taken
            from them.
        source_domain, target_domain: learn with the labels of one domain for another, whose labels are not
            used.
        leave_out_domain: a domain that is kept for testing.
        split: name of a published split of dataset.json, or ``none`` to draw folds whatever it says; or the
            folds themselves.
        pretrain_on: names of datasets whose images (not labels) serve the first phases only.
        novel: classes that are not learnt, but shown by a support case: their labels are kept out of
            training.
        label_groups: raw values by class, in place of the dataset's own classes; what is in no group is
            background.
        align: align cases affinely to the atlas, or not; None leaves it to method and data.
        like: plan of the run that training will start from: grid, patch, batch and encoder are its, unless
            they are chosen here; the method takes over what its network needs (`Situation.like`).
        settings: further keys of the plan, ``{"training.lr": 0.005}``, as `parse_setting` reads them.
    """

    name: str | None = None
    spacing: tuple[float, ...] | None = None
    patch_size: tuple[int, ...] | None = None
    batch_size: int | None = None
    iterations: int | None = None
    lr: float | None = None
    seed: int | None = None
    dims: int | None = None
    encoder: str | None = None
    encoder_weights: str | None = None
    gpu_memory: float | None = None
    labelled: str | None = None
    labelled_cases: tuple[str, ...] = ()
    source_domain: str | None = None
    target_domain: str | None = None
    leave_out_domain: str | None = None
    split: str | Sequence[Mapping[str, Sequence[str]]] | None = None
    pretrain_on: tuple[str, ...] = ()
    novel: tuple[str, ...] = ()
    label_groups: Mapping[str, tuple[int, ...]] | None = None
    align: bool | None = None
    like: Plan | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def domains(self) -> tuple[str | None, str | None, str | None]:
        """Those of source, of target, and the one to leave out."""
        return self.source_domain, self.target_domain, self.leave_out_domain

    def value(self, key: str, named: str | None = None) -> tuple[Any, str] | None:
        """Return what the user chose for a key of the plan, or the run to start from has, and the reason to
        give; None if nothing.

        Args:
            key: dotted key of the plan, ``training.lr``.
            named: attribute of this record that means the same.
        """
        if key in self.settings:
            return self.settings[key], f"set by the user (--set {key}=...)"
        if named is not None and getattr(self, named) is not None:
            flag = "iters" if named == "iterations" else named.replace("_", "-")
            return getattr(self, named), f"set by the user (--{flag})"
        if self.like is not None and key in LIKE:
            return reduce(getattr, key.split("."), self.like), "as in the run that training starts from"
        return None


def parse_setting(text: str) -> tuple[str, Any]:
    """Read ``key=value``; the value is JSON or a Python literal, else a text; ``1,2,3`` is a list.

    Raises: PlanError if there is no ``=``.
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise PlanError(f"'{text}' should be key=value, for example training.lr=0.005.")
    return key.strip(), _literal(value.strip())


def apply_settings(plan: Plan, settings: Mapping[str, Any], config: type | None = None) -> Plan:
    """Return the plan with some keys set, each checked against the type of its key.

    Args:
        settings: values by dotted key; an entry of a list is a number: ``datasets.0.share``.
        config: the method's `Config`, which ``config.<key>`` is checked against.

    Raises: PlanError naming the key, with the nearest valid one, or the type that is expected.
    """
    if not settings:
        return plan
    data = encode(plan)
    for key, value in settings.items():
        _check_key(key, config)
        _assign(data, key, encode(value), where=f"plan '{plan.name}'")
        data["reasons"][key] = f"set by the user (--set {key}=...)"
    return decode(Plan, data, where=f"plan '{plan.name}'")


def voxels_of(
    sides: Any, *, dims: Literal[2, 3], key: str = "--patch-size", least: int = 1
) -> tuple[int, int, int]:
    """Return the sides (z, y, x) of a box that a user gave; in two dimensions (y, x) will do.

    Raises: PlanError naming the key if they are not so many integers.
    """
    values = tuple(sides) if isinstance(sides, (list, tuple)) else (sides,)
    values = (1, *values) if dims == 2 and len(values) == 2 else values
    if len(values) != 3 or not all(type(side) is int and side >= least for side in values):
        wanted = "two integers (y x) or three (z y x)" if dims == 2 else "three integers (z y x)"
        raise PlanError(f"{key}: should be {wanted}, {least} or more each, found {sides}.")
    return values[0], values[1], values[2]


def _literal(text: str) -> Any:
    lowered = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in lowered:
        return lowered[text.lower()]
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text


def _check_key(key: str, config: type | None) -> None:
    parts = key.split(".")
    kind: Any = Plan
    for depth, part in enumerate(parts):
        if depth == 1 and parts[0] == "config":
            kind = config
        if kind is None:
            return
        kind = _without_none(kind)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            known = [entry.name for entry in dataclasses.fields(kind)]
            if part not in known:
                prefix = "".join(f"{name}." for name in parts[:depth])
                near = _in_a_group(key, config) or did_you_mean(key, [prefix + name for name in known])
                raise PlanError(f"unknown key '{key}'{near}; valid here are {', '.join(known)}.")
            kind = get_type_hints(kind)[part]
        elif get_origin(kind) is tuple:
            kind = get_args(kind)[0]
        else:
            return


def _in_a_group(key: str, config: type | None) -> str:
    """Return a hint where a key was given without the group of the plan that it is in."""
    for name, kind in (("config", config), ("training", Training)):
        if kind is not None and key in {entry.name for entry in dataclasses.fields(kind)}:
            return f" (did you mean '{name}.{key}'?)"
    return ""


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        kinds = [entry for entry in get_args(kind) if entry is not type(None)]
        return kinds[0] if len(kinds) == 1 else kind
    return kind


def _assign(data: Any, key: str, value: Any, *, where: str) -> None:
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        if isinstance(data, list):
            data = data[_index(data, part, key, where)]
            continue
        if data.get(part) is None:
            raise PlanError(
                f"{where}: '{'.'.join(parents[: depth + 1])}' is not there, so '{key}' cannot be set."
            )
        data = data[part]
    if isinstance(data, list):
        data[_index(data, last, key, where)] = value
    else:
        data[last] = value


def _index(data: list[Any], part: str, key: str, where: str) -> int:
    if not part.isdigit() or int(part) >= len(data):
        raise PlanError(f"{where}: '{part}' in '{key}' should be a number from 0 to {len(data) - 1}.")
    return int(part)
