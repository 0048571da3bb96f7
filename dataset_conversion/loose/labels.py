"""Reads the label of a case, out of one file or several, onto the grid of its scan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_conversion.loose.classes import Drawn
from dataset_conversion.loose.grids import on_grid
from dataset_conversion.loose.looks import MAX_CLASSES
from dataset_conversion.volumes import Grid, Volume, read_layers
from dataset_conversion.writing import LeftOut
from medplan.errors import DataError

__all__ = ["joined", "volume_label"]

Numbers = npt.NDArray[np.integer]
Layer = tuple[Numbers, Mapping[int, int]]
"""Numbers of a label file, and what some of them become."""
Overlaps = dict[tuple[int, int], int]
"""Voxels that two values (the smaller structure first) both claim."""


def volume_label(files: Sequence[Drawn], *, grid: Grid, source: Path) -> tuple[Volume, Overlaps]:
    """Return the label of a case on the grid of its scan.

    Raises: LeftOut in words if a file lies on other voxels; DataError if one holds other things than labels.
    """

    # Pictures may be stored with two axes only.
    space = (*grid[0], *(1,) * (3 - len(grid[0]))), grid[1]

    def read(drawn: Drawn) -> list[Layer]:
        layers: list[Layer] = []
        for number, layer in enumerate(read_layers(drawn.path)):
            whole = _whole(layer.voxels, drawn.path)
            flat = whole.ndim == 2
            try:
                numbers = on_grid(replace(layer, voxels=whole[..., None] if flat else whole), *space).voxels
            except ValueError as error:
                raise LeftOut(
                    f"{drawn.path.relative_to(source).as_posix()}: {error}; the label is left out and the "
                    "scan is unlabelled. Export it again on its scan."
                ) from None
            own = {
                segment.value: value for segment, value in drawn.segments.items() if segment.layer == number
            }
            layers.append((numbers, own))
        return layers

    numbers, overlaps = joined(files, read)
    return Volume(voxels=numbers.reshape(grid[0], order="F"), affine=grid[1]), overlaps


def joined(files: Sequence[Drawn], read: Callable[[Drawn], Sequence[Layer]]) -> tuple[Numbers, Overlaps]:
    """Return one label map of masks, parts, segments or plain numbers, and where masks overlap.

    Smaller structures lie on larger ones, so that a tumour stays visible in its organ.

    Args:
        read: gives the layers of a file, and what the values of each become.

    Raises: DataError if a mask holds several values, or parts of one class overlap.
    """
    if len(files) == 1 and files[0].value is None:
        layers = read(files[0])
        if len(layers) == 1 and all(old == new for old, new in layers[0][1].items()):
            return layers[0][0], {}
    masks: list[tuple[npt.NDArray[Any], int, Drawn]] = []
    shape: tuple[int, ...] = ()
    for file in files:
        for numbers, become in read(file):
            shape, flat = numbers.shape, numbers.ravel(order="F")  # as nibabel reads them, without a copy
            inside = np.flatnonzero(flat != 0)  # of booleans it is fast
            found = _values(flat[inside])
            if file.value is not None and len(found) > 1:
                raise DataError(
                    f"{file.path}: it holds the values {found[:5]}, but lies beside other label files of its "
                    "case, so that one class was expected; split it, or move the others away."
                )
            for value in found:
                new = file.value if file.value is not None else become.get(value, value)
                masks.append((inside[flat[inside] == value] if len(found) > 1 else inside, new, file))
    result = np.zeros(int(np.prod(shape)), dtype=np.int32)
    overlaps: Overlaps = {}
    for inside, value, file in sorted(masks, key=lambda mask: -len(mask[0])):
        below = result[inside]
        for other in _values(below):
            if other == value and file.is_part:
                raise DataError(
                    f"{file.path}: it overlaps with another label of its case that names no class either; "
                    "name files by their class (liver, spleen), join them, or move one of them away."
                )
            if other != value and other:
                overlaps[value, other] = int((below == other).sum())
        result[inside] = value
    return result.reshape(shape, order="F"), overlaps


def _whole(voxels: npt.NDArray[Any], path: Path) -> Numbers:
    """Return whole numbers; raises DataError if the voxels are none, or too many different ones."""
    if voxels.dtype.kind == "f":
        rounded = np.rint(voxels)
        with np.errstate(invalid="ignore"):
            odd = ~(np.abs(voxels - rounded) <= 1e-2)
        if odd.any():
            raise _no_label(path, f"a value is {voxels[odd].flat[0]:g}")
        voxels = rounded
    if voxels.min(initial=0) < -(2**15) or voxels.max(initial=0) >= 2**16:
        raise _no_label(path, f"values reach from {voxels.min():g} to {voxels.max():g}")
    numbers = voxels if voxels.dtype.kind in "iu" else voxels.astype(np.int32)
    if numbers.dtype.itemsize > 1 and (count := len(_values(numbers))) > MAX_CLASSES:
        raise _no_label(path, f"it holds {count} different values")
    return numbers


def _values(numbers: Numbers) -> list[int]:
    """Return the values that occur, as `np.unique` does, but without sorting or copying all of them."""
    if not numbers.size:
        return []
    low = int(numbers.min())
    present = np.zeros(int(numbers.max()) - low + 1, dtype=bool)
    for plane in np.moveaxis(numbers, -1, 0) if numbers.ndim > 1 else np.array_split(numbers, 64):
        present[plane.astype(np.int64) - low] = True
    return [int(value) + low for value in np.flatnonzero(present)]


def _no_label(path: Path, what: str) -> DataError:
    return DataError(f"{path}: {what}; this is no label file. Move it away, or give it another name.")
