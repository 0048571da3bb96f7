"""Exact intensity statistics in one pass, and summaries of them that can be merged over cases.

Integers (also when stored as floats) are counted per value, slab by slab, which needs no copy of the volume;
other floats are sorted, which needs one. Nothing is sampled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medplan.data.boxes import slabs

__all__ = ["Histogram", "Intensity", "merge", "summarise"]

Array = npt.NDArray[Any]

MAX_INTEGER_RANGE = 1 << 16
MAX_POINTS = 1024
TAIL = 1e-5
CHUNK = 1 << 17


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """Statistics of one channel. Percentiles interpolate linearly between neighbouring values."""

    mean: float
    std: float
    median: float
    min: float
    max: float
    p00_5: float
    p99_5: float


@dataclass(frozen=True)
class Histogram:
    """Ascending values and how often each occurs (float64, so that merged ones can carry weights)."""

    values: npt.NDArray[np.float64]
    counts: npt.NDArray[np.float64]
    mean: float
    variance: float
    exact: Intensity | None = None

    @property
    def total(self) -> float:
        return float(self.counts.sum())

    def percentiles(self, *percent: float) -> tuple[float, ...]:
        """Return percentiles as NumPy defines them for the values written out ``counts`` times."""
        ends = np.cumsum(self.counts)
        position = np.array(percent) / 100 * (ends[-1] - 1)
        below = np.floor(position)
        last = len(self.values) - 1
        lower = self.values[np.searchsorted(ends, below, side="right").clip(0, last)]
        upper = self.values[np.searchsorted(ends, np.ceil(position), side="right").clip(0, last)]
        return tuple((lower + (upper - lower) * (position - below)).tolist())

    def intensity(self) -> Intensity:
        """Return the statistics, the exact ones where they are known."""
        if self.exact is not None:
            return self.exact
        p00_5, median, p99_5 = self.percentiles(0.5, 50.0, 99.5)
        return Intensity(
            mean=self.mean,
            std=float(np.sqrt(self.variance)),
            median=median,
            min=float(self.values[0]),
            max=float(self.values[-1]),
            p00_5=p00_5,
            p99_5=p99_5,
        )


def summarise(volume: Array, *, without_zeros: bool = False) -> Histogram | None:
    """Count the values of an array (Z, Y, X), or of an array of one dimension; it should be finite.

    Args:
        without_zeros: leave out the voxels that are exactly 0.

    Returns: None if nothing is left; else up to 1024 different values with their exact counts. More values
        are replaced by quantiles, 512 of equal weight and finer ones down to 1e-5 in both tails: percentiles
        of merged summaries are then off by at most 0.1 % in rank, less in the tails. The statistics of the
        case itself, in `exact`, are always exact.
    """
    volume = volume.reshape(1, 1, -1) if volume.ndim == 1 else volume
    if volume.size == 0:
        return None
    low, high = float(volume.min()), float(volume.max())
    if high - low < MAX_INTEGER_RANGE and abs(low) < 2**31 and low == np.floor(low):
        counted = _count_integers(volume, int(low), int(high), without_zeros)
        if counted is not None:
            return _condensed(counted) if counted.total else None
    chosen = volume[volume != 0] if without_zeros else volume.flatten()
    chosen.sort()
    return _of_sorted(chosen) if len(chosen) else None


def merge(parts: Sequence[Histogram]) -> Histogram:
    """Pool cases, each with the same weight however many voxels it has.

    This is what nnU-Net's sampling of equally many voxels per case tends to with ever more samples.
    """
    if len(parts) == 1:
        return parts[0]
    values = np.concatenate([part.values for part in parts])
    # A common large total keeps the definition of percentiles, which counts voxels.
    weight = max(part.total for part in parts)
    counts = np.concatenate([part.counts * (weight / part.total) for part in parts])
    order = np.argsort(values, kind="stable")
    mean = float(np.mean([part.mean for part in parts]))
    variance = float(np.mean([part.variance + (part.mean - mean) ** 2 for part in parts]))
    return Histogram(values[order], counts[order], mean, variance)


def _count_integers(volume: Array, low: int, high: int, without_zeros: bool) -> Histogram | None:
    """Count per value; None if there are values that are not integers."""
    counts = np.zeros(high - low + 1, dtype=np.int64)
    for part in slabs(volume.shape):
        piece = volume[part].reshape(-1)
        whole = piece.astype(np.int64)
        if piece.dtype.kind == "f" and not np.array_equal(piece, whole):
            return None
        whole -= low
        counts += np.bincount(whole, minlength=len(counts))
    if without_zeros and low <= 0 <= high:
        counts[-low] = 0
    present = np.flatnonzero(counts)
    values, numbers = (present + low).astype(np.float64), counts[present].astype(np.float64)
    total = max(float(numbers.sum()), 1.0)
    mean = float(values @ numbers) / total
    return Histogram(values, numbers, mean, float((values - mean) ** 2 @ numbers) / total)


def _condensed(full: Histogram) -> Histogram:
    exact = full.intensity()
    if len(full.values) <= MAX_POINTS:
        return replace(full, exact=exact)
    ends = np.cumsum(full.counts)

    def at(ranks: npt.NDArray[np.float64]) -> Array:
        found: Array = full.values[np.searchsorted(ends, ranks, side="right").clip(0, len(ends) - 1)]
        return found

    return replace(_quantiles(at, full.total, full.mean, full.variance), exact=exact)


def _of_sorted(values: Array) -> Histogram:
    number = len(values)
    pieces = [values[start : start + CHUNK] for start in range(0, number, CHUNK)]
    mean = sum(float(piece.sum(dtype=np.float64)) for piece in pieces) / number
    variance = sum(float(np.square(piece - np.float64(mean)).sum()) for piece in pieces) / number
    if number <= MAX_POINTS:
        points, counts = np.unique(values, return_counts=True)
        few = Histogram(points.astype(np.float64), counts.astype(np.float64), mean, variance)
        return replace(few, exact=few.intensity())
    position = np.array([0.5, 50.0, 99.5]) / 100 * (number - 1)
    below = np.floor(position).astype(np.int64)
    lower, upper = (
        values[below].astype(np.float64),
        values[np.ceil(position).astype(np.int64)].astype(np.float64),
    )
    p00_5, median, p99_5 = (lower + (upper - lower) * (position - below)).tolist()
    exact = Intensity(
        mean=mean,
        std=float(np.sqrt(variance)),
        median=median,
        min=float(values[0]),
        max=float(values[-1]),
        p00_5=p00_5,
        p99_5=p99_5,
    )
    at_ranks = _quantiles(lambda ranks: values[ranks.astype(np.int64)], float(number), mean, variance)
    return replace(at_ranks, exact=exact)


def _quantiles(
    at: Callable[[npt.NDArray[np.float64]], Array], total: float, mean: float, variance: float
) -> Histogram:
    """Return points in the middle of strata; the outermost are the minimum and the maximum."""
    tail = np.geomspace(TAIL, 0.01, 200)
    edges = np.unique(np.concatenate([np.linspace(0.0, 1.0, 513), tail, 1.0 - tail]))
    ranks = np.floor((edges[:-1] + edges[1:]) / 2 * total).clip(0, total - 1)
    ranks[0], ranks[-1] = 0, total - 1
    points, where = np.unique(at(ranks).astype(np.float64), return_inverse=True)
    counts = np.bincount(where.reshape(-1), weights=np.diff(edges) * total, minlength=len(points))
    return Histogram(points, counts.astype(np.float64), mean, variance)
