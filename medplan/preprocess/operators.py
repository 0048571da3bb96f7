"""Interpolation along one axis as a banded matrix, cached, and its product with a volume.

Interpolating a volume of (Z, Y, X) voxels is three such products, which the matrix routines of the processor
run at full speed. Samples are areas, not points: n samples squeezed into m keep the extent of the volume (the
convention of `skimage.transform.resize` and of torch's ``align_corners=False``).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import spline_filter1d

__all__ = ["Band", "along", "band", "neighbours", "operator", "window"]

Kind = Literal["cubic", "linear"]

_PADDING = 12
_NEGLIGIBLE = 1e-9
_ROWS_PER_BLOCK = 16
_MOST_PRODUCTS = 2**18
"""Multiplications in one matrix product up to which OpenBLAS uses one thread."""
_BYTES_AT_ONCE = 2**22
"""Of a volume; what stays in the cache of a core."""


@dataclass(frozen=True)
class Band:
    """A block of rows of an operator and the only inputs that they depend on.

    Attributes:
        rows: [start, stop) of the outputs.
        columns: [start, stop) of the inputs.
        weights: (rows, columns) float32.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    weights: npt.NDArray[np.float32]


@lru_cache(maxsize=64)
def operator(kind: Kind, num_inputs: int, num_outputs: int) -> npt.NDArray[np.float64]:
    """Return the (num_outputs, num_inputs) matrix that resamples one axis.

    ``cubic`` is the interpolating cubic B-spline including its prefilter, on a signal continued by its border
    values; ``linear`` repeats the border value. Both equal `skimage.transform.resize` with mode 'edge'.

    Source: Unser 1999, "Splines: a perfect fit for signal and image processing", eq. 8 and 13. The
        continuation by 12 border samples is SciPy's, so that the figures agree with it to rounding.
    """
    position = positions(num_inputs, num_outputs)
    rows = np.arange(num_outputs)
    if kind == "linear":
        lower, upper, weight = neighbours(num_inputs, num_outputs)
        matrix = np.zeros((num_outputs, num_inputs))
        np.add.at(matrix, (rows, lower), 1 - weight)
        np.add.at(matrix, (rows, upper), weight)
    else:
        padded = np.pad(np.eye(num_inputs), ((_PADDING, _PADDING), (0, 0)), mode="edge")
        coefficients = spline_filter1d(padded, order=3, axis=0, mode="nearest")
        base = np.floor(position).astype(int)
        fraction = position - base
        matrix = np.zeros((num_outputs, num_inputs))
        for offset in (-1, 0, 1, 2):
            weight = _cubic_b_spline(fraction - offset)
            matrix += weight[:, None] * coefficients[base + offset + _PADDING]
    matrix.setflags(write=False)
    return matrix


def positions(num_inputs: int, num_outputs: int) -> npt.NDArray[np.float64]:
    """Return where each output sample lies, in input samples; when enlarging the outermost lie beyond."""
    return np.asarray((np.arange(num_outputs) + 0.5) * (num_inputs / num_outputs) - 0.5)


def neighbours(
    num_inputs: int, num_outputs: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return per output sample the input samples below and above it, and the weight of the one above."""
    position = np.clip(positions(num_inputs, num_outputs), 0, num_inputs - 1)
    lower = np.floor(position).astype(np.int64)
    upper = np.minimum(lower + 1, num_inputs - 1)
    return lower, upper, position - lower


@lru_cache(maxsize=64)
def band(kind: Kind, num_inputs: int, num_outputs: int) -> tuple[Band, ...]:
    """Return the operator cut into blocks of rows that touch few inputs each."""
    return window(kind, num_inputs, num_outputs, (0, num_outputs), (0, num_inputs))


def window(
    kind: Kind, num_inputs: int, num_outputs: int, rows: tuple[int, int], columns: tuple[int, int]
) -> tuple[Band, ...]:
    """Return the part of an operator from the inputs `columns` to the outputs `rows`, renumbered from 0."""
    matrix = operator(kind, num_inputs, num_outputs)[rows[0] : rows[1], columns[0] : columns[1]]
    blocks = []
    for start in range(0, len(matrix), _ROWS_PER_BLOCK):
        block = matrix[start : start + _ROWS_PER_BLOCK]
        used = np.flatnonzero((np.abs(block) > _NEGLIGIBLE).any(axis=0))
        low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        weights = np.ascontiguousarray(block[:, low:high], dtype=np.float32)
        blocks.append(Band((start, start + len(block)), (low, high), weights))
    return tuple(blocks)


def along(volume: npt.NDArray[np.float32], axis: int, bands: tuple[Band, ...]) -> npt.NDArray[np.float32]:
    """Multiply a (Z, Y, X) volume with an operator along one axis (0, 1 or 2)."""
    shape = list(volume.shape)
    shape[axis] = bands[-1].rows[1]
    result = np.empty(shape, dtype=np.float32)
    # Many small products: of large ones BLAS gives each of its threads a part, and these spend more time
    # waiting for each other than this takes, many times more where cases are prepared side by side.
    source, target = (one.swapaxes(0, 1) if axis == 0 else one for one in (volume, result))
    planes = max(1, _BYTES_AT_ONCE // source[0].nbytes)
    for below in range(0, len(source), planes):
        _multiply(source[below : below + planes], axis, bands, target[below : below + planes])
    return result


def _multiply(
    source: npt.NDArray[np.float32], axis: int, bands: tuple[Band, ...], target: npt.NDArray[np.float32]
) -> None:
    for block in bands:
        (first, last), (low, high) = block.rows, block.columns
        step = max(8, _MOST_PRODUCTS // block.weights.size)
        for start in range(0, source.shape[1 if axis == 2 else 2], step):
            part = slice(start, start + step)
            if axis == 2:
                np.matmul(source[:, part, low:high], block.weights.T, out=target[:, part, first:last])
            else:
                np.matmul(block.weights, source[:, low:high, part], out=target[:, first:last, part])


def _cubic_b_spline(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    away = np.abs(distance)
    inner = 2 / 3 - away**2 + away**3 / 2
    outer = np.maximum(2 - away, 0) ** 3 / 6
    return np.asarray(np.where(away < 1, inner, outer))
