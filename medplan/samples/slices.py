"""Slices of volumes: which show a class, and which slice of one case corresponds to a slice of another."""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from medplan.samples.cases import Case

__all__ = ["PARTS", "allowed_slices", "matching_slice", "part_of", "slices_of_parts", "slices_with"]

PARTS = 3
"""Of a class along z, for each of which an example has one slice. Source: SSL-ALPNet."""


def slices_with(case: Case, code: int) -> npt.NDArray[np.intp]:
    """Return the sorted z of all slices that show a code; `Case.locations` has one voxel in each at least."""
    voxels = case.locations.get(code)
    if voxels is None or not len(voxels):
        return np.zeros(0, dtype=np.intp)
    return np.unique(np.asarray(voxels)[:, 0]).astype(np.intp)


def allowed_slices(case: Case, *, without: Collection[int] = ()) -> npt.NDArray[np.intp]:
    """Return the z of all slices that show none of the codes."""
    banned = [slices_with(case, code) for code in without]
    return np.setdiff1d(np.arange(case.shape[0]), np.concatenate(banned) if banned else [])


def slices_of_parts(slices: Sequence[int] | npt.NDArray[np.intp], parts: int = PARTS) -> tuple[int, ...]:
    """Return the slice in the middle of each of `parts` equal parts, lowest first.

    Three parts of n slices: those at n/6, 3n/6 and 5n/6; a class in one or two slices repeats them.
    Source: Ouyang et al. 2020, arXiv:2007.09886, section 4.
    """
    number = len(slices)
    return tuple(
        int(slices[min(number - 1, (2 * part + 1) * number // (2 * parts))]) for part in range(parts)
    )


def part_of(z: int, lowest: int, highest: int, parts: int = PARTS) -> int:
    """Return which of `parts` equal parts of [lowest, highest] a slice lies in; beyond, the nearest one."""
    length = highest - lowest + 1
    return min(parts - 1, max(0, (z - lowest) * parts // length))


def matching_slice(
    z: int,
    extent: tuple[int, int],
    other: Sequence[int] | npt.NDArray[np.intp],
    other_extent: tuple[int, int],
) -> tuple[int, float]:
    """Find, by relative position in the body, the slice of another case that corresponds to slice `z`.

    Args:
        extent: first and last slice of the body in the case of `z`.
        other: sorted candidates, at least one.
        other_extent: of the body in the other case.

    Returns: the candidate, and how far outside the candidates the position lies, as a share of the body.
    """
    share = (z - extent[0]) / max(1, extent[1] - extent[0])
    length = max(1, other_extent[1] - other_extent[0])
    wanted = other_extent[0] + share * length
    candidates = np.asarray(other)
    nearest = int(candidates[int(np.abs(candidates - wanted).argmin())])
    outside = max(candidates[0] - wanted, wanted - candidates[-1], 0.0)
    return nearest, float(outside / length)
