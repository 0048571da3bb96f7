"""Boxes that a user gives with the images, for methods that take them.

    {"case0001": [[x0, y0, x1, y1], ...], "case0002": [[x0, y0, z0, x1, y1, z1], ...]}

Where boxes are of one class only, they are listed by class: ``{"case0001": {"liver": [[...]]}}``; otherwise
they count for every class. Positions are in pixels or voxels of the image file, x along rows: pixel i reaches
from i to i + 1, so that the box [0, 0, width, height] is the whole picture. Pictures take four numbers,
volumes six, or four for every slice.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medplan.errors import DataError
from medplan.preprocess.geometry import Restoration
from medplan.records import load_json

__all__ = ["BoxArray", "Boxes", "CaseBoxes", "describe", "read_boxes", "to_prepared"]

BoxArray = npt.NDArray[np.float64]

CaseBoxes = BoxArray | Mapping[str, BoxArray]
"""Boxes (n, 6) of a case, or those of each of some classes by its name."""

Boxes = Mapping[str, CaseBoxes]


def read_boxes(path: Path) -> Boxes:
    """Read boxes by case id: arrays (n, 6) of z0, y0, x0, z1, y1, x1; z is -inf and inf where the file has
    none.

    Raises: DataError naming the case and what is wrong with its boxes.
    """
    content = load_json(path, error=DataError, hint=" (--prompts)")
    if not isinstance(content, dict):
        raise DataError(
            f'{path}: expected {{"case": [[x0, y0, x1, y1], ...]}}, found a {type(content).__name__}.'
        )
    return {case: _of_case(boxes, f"{path}: case '{case}'") for case, boxes in content.items()}


def describe(boxes: Boxes, cases: Sequence[str], prompt: str) -> str:
    """Return in a few words which prompts a prediction of these cases used."""
    given = sum(case in boxes for case in cases)
    if given == len(cases):
        return "boxes"
    return prompt if given == 0 else f"boxes for {given} of {len(cases)} cases, else {prompt}"


def to_prepared(boxes: CaseBoxes, restoration: Restoration) -> CaseBoxes:
    """Map boxes (n, 6) from the input's grid to the prepared one, cut to it; one turned askew is enclosed.

    Raises: DataError if a box lies outside of the input.
    """
    if isinstance(boxes, Mapping):
        return {name: _to_prepared(own, restoration) for name, own in boxes.items()}
    return _to_prepared(boxes, restoration)


def _to_prepared(boxes: BoxArray, restoration: Restoration) -> BoxArray:
    last = np.array(restoration.native.shape, dtype=np.float64)
    lower, upper = np.clip(boxes[:, :3], 0, last), np.clip(boxes[:, 3:], 0, last)
    for box in boxes[(lower >= upper).any(1)]:
        raise DataError(
            f"the box from {_point(box[:3])} to {_point(box[3:])} (--prompts) lies outside of the image, "
            f"which ends at {_point(last)} (x, y, z)."
        )
    corners = []
    for choice in np.ndindex(2, 2, 2):
        edges = np.where(np.array(choice, dtype=bool), upper, lower)
        corners.append(restoration.forward(edges - 0.5) + 0.5)
    moved = np.stack(corners)
    shape = np.array(restoration.shape, dtype=np.float64)
    return np.concatenate([np.clip(moved.min(0), 0, shape), np.clip(moved.max(0), 0, shape)], axis=1)


def _point(corner: BoxArray) -> str:
    return ", ".join(f"{number:g}" for number in reversed(corner) if np.isfinite(number))


def _of_case(boxes: object, where: str) -> CaseBoxes:
    if isinstance(boxes, Mapping):
        return {str(name): _boxes(own, f"{where}, class '{name}'") for name, own in boxes.items()}
    return _boxes(boxes, where)


def _boxes(boxes: object, where: str) -> BoxArray:
    if not isinstance(boxes, Sequence) or isinstance(boxes, str):
        raise DataError(f"{where}: expected a list of boxes, found {boxes!r}.")
    rows = []
    for box in boxes:
        numbers = isinstance(box, Sequence) and all(
            isinstance(value, (int, float)) and math.isfinite(value) for value in box
        )
        if not numbers or len(box) not in (4, 6):
            raise DataError(f"{where}: a box is [x0, y0, x1, y1] or [x0, y0, z0, x1, y1, z1], found {box!r}.")
        lower, upper = list(box[: len(box) // 2]), list(box[len(box) // 2 :])
        if any(low >= high for low, high in zip(lower, upper, strict=True)):
            raise DataError(
                f"{where}: the box {box!r} is empty; the second corner has to lie beyond the first."
            )
        if len(box) == 4:
            lower, upper = [*lower, -np.inf], [*upper, np.inf]
        rows.append([*reversed(lower), *reversed(upper)])
    return np.array(rows, dtype=np.float64).reshape(len(rows), 6)
