"""Where the outline of a class in examples comes to lie in another case, and how much each voxel there looks
like what the outline encloses.

Differs: published few-shot methods have no such step; they are told where an organ begins and ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medplan.preprocess.appearance import inside_log_ratio
from medplan.preprocess.carry import AxisMap, Millimetres, Volume, refine

__all__ = ["REACH_MM", "Carried", "carry_class"]

REACH_MM = 40.0
"""Surroundings up to here from a class guide the fit; further from its outline a class is ruled out."""

SHARPNESS = 8
"""Examples count with this power of their likeness: one that fits a tenth better counts twice as much."""

LEAST_LIKENESS = 0.01

Voxel = tuple[int, int, int]
Shot = tuple[Volume, npt.NDArray[np.bool_], Millimetres, AxisMap]
"""First channel, mask, spacing, and the map that fits the whole case."""


@dataclass(frozen=True)
class Carried:
    """Where the examples of a class put it in another case.

    Attributes:
        inside_mm: distance from the outline, negative outside and at least -`REACH_MM`, within `box`.
        look: log ratio of each voxel's intensity inside and around the outline, within `box`; see
            `medplan.preprocess.appearance`.
        box: lowest corner (z, y, x) of it.
        maps: of each example.
    """

    inside_mm: npt.NDArray[np.float32]
    look: npt.NDArray[np.float32]
    box: Voxel
    maps: tuple[AxisMap, ...]

    def reaches(self, z: int) -> bool:
        """Whether the class may be in a slice."""
        return 0 <= z - self.box[0] < len(self.inside_mm)

    def positions(self, z: int) -> tuple[float, ...]:
        """Return where slice z lies in each example, in its slices."""
        return tuple(one.scale[0] * z + one.offset[0] for one in self.maps)

    def worth(
        self, lower: Voxel, upper: Voxel, *, per_mm: float, per_look: float, absent: float
    ) -> npt.NDArray[np.float32]:
        """Return (Y, X): how much place and look of each pixel of a box (1, Y, X) speak for the class.

        Args:
            per_mm, per_look: factors of `inside_mm` and `look`.
            absent: what is returned for pixels further outside than `REACH_MM`.
        """
        shape = [high - low for low, high in zip(lower, upper, strict=True)]
        result: npt.NDArray[np.float32] = np.full(shape[1:], absent, np.float32)
        here, there = [], []
        for low, high, first, length in zip(lower, upper, self.box, self.inside_mm.shape, strict=True):
            start, stop = max(low, first), min(high, first + length)
            if start >= stop:
                return result
            here.append(slice(start - low, stop - low))
            there.append(slice(start - first, stop - first))
        inside, look = self.inside_mm[tuple(there)][0], self.look[tuple(there)][0]
        speaks = per_mm * inside + per_look * look
        result[here[1], here[2]] = np.where(inside > -REACH_MM, speaks, absent)
        return result


def carry_class(target: Volume, target_mm: Millimetres, shots: Sequence[Shot]) -> Carried:
    """Fit each example onto a case around its class, and average where they put it, by how well they fit.

    Args:
        target: (Z, Y, X), first channel of the case.
        shots: one at least, with a mask that is not empty.
    """
    shape = (target.shape[0], target.shape[1], target.shape[2])
    maps, masks, votes = [], [], []
    for source, mask, source_mm, whole in shots:
        near = 1 - ndimage.distance_transform_edt(~mask, source_mm) / REACH_MM
        weight = np.clip(near, 0, 1).astype(np.float32)
        mapping, likeness = refine(
            whole, target, source, target_mm=target_mm, source_mm=source_mm, weight=weight
        )
        maps.append(mapping)
        masks.append(mapping.carry(mask.astype(np.float32), shape))
        votes.append(max(likeness, LEAST_LIKENESS) ** SHARPNESS)
    total = np.average(masks, axis=0, weights=votes)
    inside = total >= min(0.5, float(total.max()))
    if not total.any():
        nothing = np.zeros((0, 0, 0), np.float32)
        return Carried(nothing, nothing, (0, 0, 0), tuple(maps))
    spans = [np.flatnonzero(inside.any(tuple(o for o in range(3) if o != axis))) for axis in range(3)]
    reach = [int(np.ceil(REACH_MM / step)) for step in target_mm]
    lower = [max(0, int(found[0]) - far) for found, far in zip(spans, reach, strict=True)]
    upper = [min(n, int(found[-1]) + 1 + far) for found, far, n in zip(spans, reach, shape, strict=True)]
    box = tuple(slice(low, high) for low, high in zip(lower, upper, strict=True))
    part = inside[box]
    distances = ndimage.distance_transform_edt(part, target_mm)
    distances -= ndimage.distance_transform_edt(~part, target_mm)
    clipped = np.clip(distances, -REACH_MM, REACH_MM).astype(np.float32)
    look = inside_log_ratio(target[box], clipped, target_mm)
    return Carried(clipped, look, (lower[0], lower[1], lower[2]), tuple(maps))
