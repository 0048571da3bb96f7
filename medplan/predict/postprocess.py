"""Keeping only the largest connected component, where validation says that it does no harm.

Label maps here hold raw values, as label files do.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medplan.data.boxes import Box, around, box_slices, value_boxes
from medplan.data.labels import LabelSpace
from medplan.records import read_json, write_json

__all__ = ["FILE_NAME", "Postprocessing", "apply", "decide", "read", "read_common", "write"]

FILE_NAME = "postprocessing.json"
TOUCHING_CORNERS = 26

LabelMap = npt.NDArray[np.integer[Any]]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Postprocessing:
    """What is done to a predicted label map.

    Attributes:
        largest_foreground: all classes together keep only their largest connected component.
        largest_of: these classes, each for itself, keep only theirs (after the above).
        num_cases: validation cases that it was decided on.
        dice_before, dice_after: mean Dice over classes and these cases without and with it, or None.
    """

    largest_foreground: bool = False
    largest_of: tuple[str, ...] = ()
    num_cases: int = 0
    dice_before: float | None = None
    dice_after: float | None = None

    @property
    def does_nothing(self) -> bool:
        return not self.largest_foreground and not self.largest_of


def read(folder: Path) -> Postprocessing:
    """Read the record of a run or fold folder; one that does nothing if there is none."""
    path = folder / FILE_NAME
    return read_json(Postprocessing, path) if path.is_file() else Postprocessing()


def read_common(folders: Sequence[Path]) -> Postprocessing:
    """Return what the records of all these folds agree on, for the average of their predictions."""
    records = [read(folder) for folder in folders]
    if len(records) == 1:
        return records[0]
    return Postprocessing(
        largest_foreground=all(record.largest_foreground for record in records),
        largest_of=tuple(
            name for name in records[0].largest_of if all(name in record.largest_of for record in records)
        ),
        num_cases=sum(record.num_cases for record in records),
    )


def write(record: Postprocessing, folder: Path) -> Path:
    """Write the record into a run or fold folder."""
    return write_json(record, folder / FILE_NAME)


def apply(record: Postprocessing, label: LabelMap, labels: LabelSpace) -> LabelMap:
    """Return the label map (Z, Y, X) with what is not part of a largest component set to background."""
    if record.does_nothing:
        return label
    label = label.copy()
    everything = sorted({value for values in labels.values for value in values if value})
    # Voxels are only taken away, so that these boxes stay large enough.
    boxes = value_boxes(label)
    if record.largest_foreground:
        _keep_largest(label, everything, boxes)
    for name, values in zip(labels.names, labels.values, strict=True):
        if name in record.largest_of:
            _keep_largest(label, values, boxes)
    return label


def decide(pairs: Iterable[tuple[LabelMap, LabelMap]], labels: LabelSpace) -> Postprocessing:
    """Choose the post-processing on validation cases, looked at once each.

    A step is taken if it lowers the mean Dice of no class: first the largest component of everything, then,
    per class, the largest of its own. A class that no case shows is left alone.

    Args:
        pairs: predicted and reference label map (Z, Y, X) of each case.

    Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z.  Differs: no class may fall in either step,
        and a step that changes nothing on the validation cases is taken too.
    """
    everything = Postprocessing(largest_foreground=True)
    each = Postprocessing(largest_of=labels.names)
    tables: list[list[Scores]] = []
    for predicted, reference in pairs:
        foreground = apply(everything, predicted, labels)
        variants = (predicted, apply(each, predicted, labels), foreground, apply(each, foreground, labels))
        tables.append([_dice(variant, reference, labels) for variant in variants])
    if not tables:
        return Postprocessing()
    plain, of_each, of_all, of_all_and_each = np.array(tables).swapaxes(0, 1)
    with_foreground = _falls_nowhere(of_all, plain) and bool(np.isfinite(plain).any())
    before, after = (of_all, of_all_and_each) if with_foreground else (plain, of_each)
    chosen = [
        index
        for index in range(len(labels.names))
        if np.isfinite(before[:, index]).any() and _falls_nowhere(after[:, [index]], before[:, [index]])
    ]
    final = before.copy()
    final[:, chosen] = after[:, chosen]
    return Postprocessing(
        largest_foreground=with_foreground,
        largest_of=tuple(labels.names[index] for index in chosen),
        num_cases=len(tables),
        dice_before=_mean(plain),
        dice_after=_mean(final),
    )


def _keep_largest(label: LabelMap, values: Sequence[int], boxes: Mapping[int, Box]) -> None:
    """Set to 0, in place, the voxels with these values outside their largest component."""
    # Imported here: it brings scikit-image along, and most predictions need no components.
    from acvl_utils.morphology.morphology_helper import cc3d_label_with_component_sizes

    own = [boxes[value] for value in values if value in boxes]
    if not own:
        return
    part = label[box_slices(around(own))]
    mask = np.isin(part, values)
    components, sizes = cc3d_label_with_component_sizes(mask, connectivity=TOUCHING_CORNERS)
    if len(sizes) > 1:
        part[mask & (components != max(sizes, key=lambda number: sizes[number]))] = 0


def _dice(predicted: LabelMap, reference: LabelMap, labels: LabelSpace) -> Scores:
    """Return the Dice of each class; NaN where neither map has it."""
    valid = np.ones(reference.shape, bool) if labels.ignore is None else reference != labels.ignore
    scores = np.full(len(labels.names), np.nan)
    for index, values in enumerate(labels.values):
        ours, theirs = np.isin(predicted, values) & valid, np.isin(reference, values) & valid
        total = int(ours.sum()) + int(theirs.sum())
        if total:
            scores[index] = 2 * int((ours & theirs).sum()) / total
    return scores


def _falls_nowhere(after: Scores, before: Scores) -> bool:
    """Return whether no column's mean is lower; a case that only one side scores counts 0 on the other."""
    # A class that post-processing removed altogether, in a case without it, is right: it counts 1.
    scored = np.isfinite(before)
    after = np.where(scored & ~np.isfinite(after), 1.0, after)
    return all(
        after[scored[:, column], column].sum() >= before[scored[:, column], column].sum() - 1e-9
        for column in range(before.shape[1])
    )


def _mean(scores: Scores) -> float | None:
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else None
