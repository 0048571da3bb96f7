"""Preprocessed cases as training and prediction see them: patches are read, volumes are not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Case", "CaseStore"]

Voxel = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One preprocessed case.

    Attributes:
        key: ``<dataset>/<id>``.
        pixels: (C, Z, Y, X) float32, sliceable; a NumPy array in memory or a chunked array on disk.
        codes: (Z, Y, X) int16 of the dataset's `LabelSpace`, sliceable; None when the case has no label.
        spacing_mm: (z, y, x) of the preprocessed grid; None for pictures.
        locations: per code some voxels (n, 3) that carry it, for over-sampling; empty without a label.
        domain: scanner, centre, vendor or modality the case comes from, if the dataset says.
        prompts: what a user gave with the image (boxes in voxels of the preprocessed grid), by name.
        extra: further sliceable volumes (Z, Y, X) that a method asked to be preprocessed, by name.
    """

    key: str
    pixels: Any
    codes: Any | None = None
    spacing_mm: tuple[float, float, float] | None = None
    locations: Mapping[int, npt.NDArray[np.integer]] = field(default_factory=dict)
    domain: str | None = None
    prompts: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        return self.key.split("/", 1)[0]

    @property
    def id(self) -> str:
        return self.key.split("/", 1)[1]

    @property
    def shape(self) -> Voxel:
        z, y, x = self.pixels.shape[1:]
        return int(z), int(y), int(x)

    def image(self, lower: Voxel | None = None, upper: Voxel | None = None) -> npt.NDArray[np.float32]:
        """Return (C, *upper - lower) float32; voxels outside the case are 0. Without a box, the whole case."""

    def label(self, lower: Voxel | None = None, upper: Voxel | None = None) -> npt.NDArray[np.int16]:
        """Return (*upper - lower) codes; voxels outside the case are background. Raises MethodError without a label."""


class CaseStore:
    """The cases of one fold of a plan, by role. Cheap to pickle: it opens files when they are read."""

    def role(self, name: str) -> tuple[str, ...]:
        """Return the keys of the cases with that role in the fold; empty if there are none."""

    def __getitem__(self, key: str) -> Case:
        """Open a case (header only; nothing is decompressed)."""

    def plan_of(self, key: str) -> "DatasetPlan":
        """Return the dataset plan that a case belongs to."""
