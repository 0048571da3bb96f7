"""Folds that were chosen by hand, as nnU-Net keeps them in splits_final.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medplan.errors import DataError

__all__ = ["FOLDS_FILE", "read_folds"]

FOLDS_FILE = "splits_final.json"


def read_folds(path: Path) -> tuple[Mapping[str, tuple[str, ...]], ...]:
    """Return the cases of each fold by role, ``labelled`` and ``validation``.

    Raises: DataError if it is not a list of objects with ``train`` and ``val``, or a case is in both.
    """
    try:
        data: Any = json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}).") from None
    folds = data if isinstance(data, list) else []
    known = [fold for fold in folds if isinstance(fold, dict) and _are_names(fold.get("train"))]
    if not folds or len(known) < len(folds) or not all(_are_names(fold.get("val", [])) for fold in folds):
        raise DataError(f'{path}: should be a list of folds, {{"train": [cases], "val": [cases]}} each.')
    for number, fold in enumerate(folds):
        if twice := sorted({*fold["train"]} & {*fold.get("val", [])}):
            raise DataError(f"{path}: fold {number} has '{twice[0]}' in 'train' and in 'val'.")
    return tuple({"labelled": (*fold["train"],), "validation": (*fold.get("val", []),)} for fold in folds)


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
