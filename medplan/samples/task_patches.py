"""Patches with the tasks that their dataset has labels for, and their modality."""

from dataclasses import dataclass

import numpy as np

from medplan.samples.cases import CaseStore
from medplan.samples.sampling import Element, Labelled

__all__ = ["TaskPatches"]


@dataclass(frozen=True)
class TaskPatches:
    """Labelled patches of one dataset, with ``tasks`` (int64, one number per slot, -1 for an empty slot),
    ``modality`` as it is shown and ``true_modality`` (int64, -1 if unknown)."""

    labelled: Labelled
    tasks: tuple[int, ...]
    modality_of_domain: tuple[tuple[str | None, int], ...]
    hide_modality: float

    def __call__(self, store: CaseStore, rng: np.random.Generator) -> Element:
        element = self.labelled(store, rng)
        known = dict(self.modality_of_domain)
        modality = known.get(store[element["case"]].domain, known[None])
        shown = -1 if rng.random() < self.hide_modality else modality
        return {
            **element,
            "tasks": np.array(self.tasks, dtype=np.int64),
            "modality": np.int64(shown),
            "true_modality": np.int64(modality),
        }
