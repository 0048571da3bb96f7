"""What prediction reads from a run folder, and the part of it that prediction alone needs.

<run>/
  postprocessing.json          optional
  fold_<k>/
    best.pt, last.pt           checkpoints, with the plan in them; either is enough
    plan.json                  the same plan, to be read by people
    support/<dataset>__<id>.npz   preprocessed cases of role atlas or support, where the method has such
"""

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medplan.errors import CheckpointError
from medplan.plan.schema import Fold, Grid
from medplan.preprocess.atlas import Atlas, atlas_path
from medplan.samples.cases import Case, CaseStore

__all__ = [
    "CHECKPOINTS",
    "FoldFolder",
    "find_folds",
    "keep_for_prediction",
    "read_atlas",
    "read_support",
    "write_support",
]

CHECKPOINTS = ("best", "last")
SUPPORT = "support"
SUPPORT_ROLES = ("atlas", "support")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FoldFolder:
    """One trained fold: its number, its folder and the checkpoint to use."""

    fold: Fold
    folder: Path
    checkpoint: Path


def find_folds(
    run: Path, *, folds: Sequence[Fold] | None = None, checkpoint: Literal["best", "last"] = "best"
) -> tuple[FoldFolder, ...]:
    """List the trained folds of a run folder, or the one fold whose folder was given.

    Args:
        folds: their numbers, or 'all' for the one trained on every case; None takes every number that has a
            checkpoint, else 'all'.
        checkpoint: ``best`` takes the last one, and says so, where no validation has picked a best one.

    Raises: CheckpointError naming what is missing and what there is.
    """
    if not run.is_dir():
        raise CheckpointError(f"There is no run folder '{run}'. Train a model, or name another with --model.")
    there = {number: path for path in run.iterdir() if (number := _number_of(path)) is not None}
    if not there and _checkpoints(run):
        number = _number_of(run)
        there = {0 if number is None else number: run}
    trained = {number: there[number] for number in sorted(there, key=_order) if _checkpoints(there[number])}
    numbered: tuple[Fold, ...] = tuple(number for number in trained if number != "all")
    wanted = (numbered or tuple(trained)) if folds is None else tuple(folds)
    missing = [number for number in wanted if number not in trained]
    if not wanted or missing:
        what = f"fold {missing[0]}" if missing else "any fold"
        has = ", ".join(map(str, trained)) or "none"
        raise CheckpointError(
            f"{run}: there is no checkpoint of {what}; trained folds: {has}. Train it, or choose another "
            "with --folds."
        )
    return tuple(_open(number, trained[number], checkpoint) for number in wanted)


def keep_for_prediction(store: CaseStore, preprocessed: Mapping[str, Path], fold_folder: Path) -> None:
    """Copy what prediction needs of the training data beside a fold's checkpoints, so that these can travel
    alone.

    Args:
        store: of the fold; its cases of role atlas and support are kept with their labels.
        preprocessed: per dataset its folder of preprocessed cases, where the atlas volume lies if there is
            one.
    """
    write_support([store[key] for role in SUPPORT_ROLES for key in store.role(role)], fold_folder)
    for folder in preprocessed.values():
        if atlas_path(folder).is_file():
            fold_folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(atlas_path(folder), atlas_path(fold_folder))


def read_atlas(fold_folder: Path, grid: Grid) -> Atlas | None:
    """Return what images are aligned to; None where the grid asks for no alignment.

    Raises: CheckpointError if it asks for one and the folder has no atlas.
    """
    if grid.align_to is None:
        return None
    if not atlas_path(fold_folder).is_file():
        raise CheckpointError(
            f"{atlas_path(fold_folder)}: there is no such file, but the model aligns images to "
            f"'{grid.align_to}'. Copy the run folder again."
        )
    return Atlas.load(atlas_path(fold_folder))


def write_support(cases: Sequence[Case], fold_folder: Path) -> None:
    """Keep preprocessed cases, with their labels, beside a fold's checkpoints, so that it can travel
    alone."""
    for number, case in enumerate(cases):
        path = fold_folder / SUPPORT / f"{number:03d}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, npt.NDArray[Any]] = {
            "key": np.array(case.key),
            "pixels": case.image(),
            "codes": case.label(),
        }
        arrays |= {f"extra_{name}": np.asarray(volume[:]) for name, volume in case.extra.items()}
        if case.spacing_mm is not None:
            arrays["spacing_mm"] = np.array(case.spacing_mm)
        if case.domain is not None:
            arrays["domain"] = np.array(case.domain)
        temporary = path.with_name(f".{path.name}")
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        temporary.replace(path)


def read_support(fold_folder: Path) -> tuple[Case, ...]:
    """Return the cases that `write_support` kept, in their order; none if there are none."""
    return tuple(_read_case(path) for path in sorted((fold_folder / SUPPORT).glob("*.npz")))


def _read_case(path: Path) -> Case:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            content = dict(arrays)
        spacing = content.get("spacing_mm")
        codes = content["codes"]
        return Case(
            key=str(content["key"]),
            pixels=content["pixels"],
            codes=codes,
            spacing_mm=None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2])),
            locations={int(code): np.argwhere(codes == code) for code in np.unique(codes)},
            domain=str(content["domain"]) if "domain" in content else None,
            extra={key[6:]: volume for key, volume in content.items() if key.startswith("extra_")},
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: not a support case ({error}). Copy the run folder again.") from None


def _order(number: Fold) -> tuple[bool, int]:
    return (True, 0) if number == "all" else (False, number)


def _number_of(path: Path) -> Fold | None:
    match = re.fullmatch(r"fold_(\d+|all)", path.name)
    if match is None or not path.is_dir():
        return None
    return "all" if match[1] == "all" else int(match[1])


def _checkpoints(folder: Path) -> dict[str, Path]:
    return {name: path for name in CHECKPOINTS if (path := folder / f"{name}.pt").is_file()}


def _open(number: Fold, folder: Path, checkpoint: str) -> FoldFolder:
    there = _checkpoints(folder)
    chosen = checkpoint
    if checkpoint == "best" and checkpoint not in there:
        logger.info("%s: no validation has picked a best checkpoint; using the last one", folder)
        chosen = "last"
    if chosen not in there:
        raise CheckpointError(
            f"{folder}: there is no {chosen}.pt, only {', '.join(p.name for p in there.values())}."
        )
    return FoldFolder(fold=number, folder=folder, checkpoint=there[chosen])
