"""Pieces of folders that nobody has put in order, and of what becomes of them."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from tests.conversion.pieces import GRIDS, SHAPE, Array, nifti, scan

AFFINE = GRIDS[1]


def box(*corners: int, shape: tuple[int, ...] = SHAPE) -> Array:
    """Return a mask of the voxels from `corners` on, two in each direction."""
    drawn = np.zeros(shape, dtype="uint8")
    drawn[tuple(slice(corner, corner + 2) for corner in corners)] = 1
    return drawn


def described(target: Path) -> Any:
    return json.loads((target / "dataset.json").read_text())


def notes_of(target: Path) -> str:
    return " ".join(described(target).get("notes", []))


def label_of(target: Path, case: str) -> Array:
    return np.asanyarray(nibabel.load(target / "labelsTr" / f"{case}.nii.gz").dataobj)


def pairs(root: Path, kinds: dict[str, str]) -> None:
    """Write the scans of cases, one letter per channel."""
    for case, letters in kinds.items():
        for letter in letters:
            kind = {"1": "t1", "2": "t2", "F": "flair", "C": "ct", "M": "mr"}[letter]
            nifti(root / f"{case}_{kind}.nii.gz", scan(ord(letter)), AFFINE)
