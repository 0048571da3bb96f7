"""Patches with the tasks that their dataset has labels for, and their modality."""

from dataclasses import dataclass

import numpy as np

from medplan.samples.cases import CaseStore
from medplan.samples.sampling import Element, Labelled

__all__ = ["TaskPatches", "filled"]

Voxel = tuple[int, int, int]


@dataclass(frozen=True)
class TaskPatches:
    """Labelled patches of one dataset, with its tasks and their modality.

    Elements hold besides ``tasks`` (int64, one number per slot, -1 for an empty slot), ``modality`` (int64,
    -1 if unknown or hidden), ``true_modality`` (int64, -1 if unknown) and ``shape``, the case's voxels.

    Attributes:
        labelled: draws the patches.
        tasks: their numbers, -1 for an empty slot.
        modality_of_domain: number of the modality by domain; that of the domain None is for all others.
        hide_modality: probability that ``modality`` says unknown.
    """

    labelled: Labelled
    tasks: tuple[int, ...]
    modality_of_domain: tuple[tuple[str | None, int], ...]
    hide_modality: float

    def __call__(self, store: CaseStore, rng: np.random.Generator) -> Element:
        element = self.labelled(store, rng)
        known, case = dict(self.modality_of_domain), store[element["case"]]
        modality = known.get(case.domain, known[None])
        shown = -1 if rng.random() < self.hide_modality else modality
        return {
            **element,
            "tasks": np.array(self.tasks, dtype=np.int64),
            "modality": np.int64(shown),
            "true_modality": np.int64(modality),
            "shape": case.shape,
        }


def filled(shape: Voxel, patch_size: Voxel, *, multiple: int) -> tuple[slice, slice, slice]:
    """Return the part of a patch that a case can fill, in multiples of so many voxels.

    Along axes on which the case is the smaller one both have the same centre, and the rest is padding.
    """
    z, y, x = (
        slice((patch - side) // 2, (patch + side) // 2)
        for patch, side in (
            (patch, min(patch, -(-length // multiple) * multiple))
            for length, patch in zip(shape, patch_size, strict=True)
        )
    )
    return z, y, x
