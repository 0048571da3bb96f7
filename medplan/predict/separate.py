"""One mask per class, so that overlapping ones need not be painted over each other."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from medplan.data.formats import ending_of, stem_of
from medplan.data.images import Geometry, write_label
from medplan.data.labels import LabelSpace
from medplan.preprocess.geometry import Restoration
from medplan.preprocess.restore import LabelRestorer

__all__ = ["Masks", "write_masks"]

LabelMap = npt.NDArray[np.integer[Any]]
SEPARATORS = re.compile(r"[\s/\\:]+")


class Masks:
    """Takes the logits of a case, slab by slab, and tells where each class is.

    A region is where its own probability is above 1/2, whatever lies over it in the label map. An exclusive
    class is where the label map says so.
    """

    def __init__(self, restoration: Restoration, labels: LabelSpace) -> None:
        self._labels = labels
        self._restorers = [
            LabelRestorer(restoration, LabelSpace(names=(name,), values=(values,), region_order=(1,)))
            for name, values in zip(labels.names, labels.values, strict=True)
            if not labels.is_exclusive
        ]

    def add(self, slab: Tensor) -> None:
        """Take the next slices (K, dz, Y, X) of logits along z of the prepared grid."""
        for index, restorer in enumerate(self._restorers):
            restorer.add(slab[index : index + 1])

    def finish(self, label: LabelMap, classes: Sequence[str]) -> dict[str, LabelMap]:
        """Return (Z, Y, X) uint8, 0 or 1, for each of `classes`, all if there are none.

        Args:
            label: raw values after post-processing; what it took away belongs to no region either.
        """
        masks: dict[str, LabelMap] = {}
        values = self._labels.decode(np.arange(len(self._labels.names) + 1))[1:]
        for index, name in enumerate(self._labels.names):
            if classes and name not in classes:
                continue
            if self._labels.is_exclusive:
                mask = label == values[index]
            else:
                mask = (self._restorers[index].finish().classes > 0) & (label != 0)
            masks[name] = mask.astype(np.uint8)
        return masks


def write_masks(masks: Mapping[str, LabelMap], label_path: Path, geometry: Geometry) -> list[Path]:
    """Write ``CASE_<class>.<ending>`` beside a case's label map; blanks and slashes become underscores."""
    stem, ending = stem_of(label_path), ending_of(label_path)
    names = {name: SEPARATORS.sub("_", name) for name in masks}
    return [
        write_label(label_path.with_name(f"{stem}_{names[name]}{ending}"), mask, geometry)
        for name, mask in masks.items()
    ]
