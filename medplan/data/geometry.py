"""Where the voxels of an image lie, and how its axes are turned to an orientation without interpolation."""

from dataclasses import dataclass
from itertools import permutations
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from medplan.errors import PlanError

__all__ = [
    "Flips",
    "Geometry",
    "Number",
    "Voxel",
    "canonical_axes",
    "canonical_geometry",
    "slice_axis",
    "to_canonical",
    "triple",
]

Voxel = tuple[int, int, int]
Flips = tuple[bool, bool, bool]
Number = TypeVar("Number", bound=np.generic)

# World axis and sign in LPS (SimpleITK's world: x to the left, y to the back, z to the head) of each letter.
_LETTERS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where the voxels of an array (Z, Y, X) lie.

    Attributes:
        shape: voxels (z, y, x).
        spacing_mm: (z, y, x); None for pictures, which have no physical size.
        origin_mm: position (x, y, z) of the first voxel's centre, LPS.
        direction: 3 x 3 row-major; column i is the direction in which array axis x, y or z grows, LPS.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = IDENTITY

    @property
    def orientation(self) -> str:
        """Letters of increasing x, y and z as nibabel names them (``RAS``); of oblique axes the nearest."""
        letters = {}
        for world, axis in enumerate(_nearest_axes(self)):
            letters[axis] = ("RL", "AP", "IS")[world][int(self.direction[3 * world + axis] > 0)]
        return letters[0] + letters[1] + letters[2]

    @property
    def is_oblique(self) -> bool:
        """Whether thick slices are stacked along a direction more than 30 degrees from every world axis."""
        axis = None if self.spacing_mm is None else slice_axis(self.spacing_mm)
        if axis is None:
            return False
        along = np.reshape(self.direction, (3, 3))[:, 2 - axis]
        return bool(np.abs(along).max() < np.cos(np.radians(30)))


def slice_axis(spacing_mm: tuple[float, float, float]) -> int | None:
    """Return the array axis along which slices at least twice as thick as pixels are stacked, if any."""
    second, thickest = sorted(spacing_mm)[1:]
    return spacing_mm.index(thickest) if thickest >= 2 * second else None


def canonical_axes(
    geometry: Geometry, orientation: str | None, *, keeps_oblique: bool = False
) -> tuple[Voxel, Flips]:
    """Return the exchange and reversal of array axes that brings a grid nearest to an orientation.

    Args:
        orientation: nibabel axis codes of increasing x, y, z, such as 'RAS'; None keeps the array, and so do
            pictures.
        keeps_oblique: as in `Grid`.

    An oblique grid keeps the rest of its rotation: its voxels are not interpolated.
    Raises: PlanError if `orientation` is no orientation.
    """
    if orientation is None or geometry.spacing_mm is None or (keeps_oblique and geometry.is_oblique):
        return (0, 1, 2), (False, False, False)
    if sorted(_LETTERS.get(letter, (9, 0))[0] for letter in orientation) != [0, 1, 2]:
        raise PlanError(
            f"'{orientation}' is no orientation; use one letter of each pair R/L, A/P and S/I, as in 'RAS'."
        )
    columns = _nearest_axes(geometry)
    world = [_LETTERS[letter] for letter in orientation]
    flips = [geometry.direction[3 * axis + columns[axis]] * sign < 0 for axis, sign in world]
    x, y, z = (2 - columns[axis] for axis, _ in world)
    return (z, y, x), (flips[2], flips[1], flips[0])


def to_canonical(array: npt.NDArray[Number], *, axes: Voxel, flipped: Flips) -> npt.NDArray[Number]:
    """View the last three axes of an array in another order and direction."""
    leading = array.ndim - 3
    turned = array.transpose(*range(leading), *(leading + axis for axis in axes))
    index: tuple[Any, ...] = (..., *(slice(None, None, -1 if flip else 1) for flip in flipped))
    view: npt.NDArray[Number] = turned[index]
    return view


def canonical_geometry(geometry: Geometry, *, axes: Voxel, flipped: Flips) -> Geometry:
    """Return where the array that `to_canonical` shows lies in the world: every voxel stays where it was."""
    direction = np.reshape(geometry.direction, (3, 3))
    spacing = np.array(geometry.spacing_mm or (1.0, 1.0, 1.0))
    columns, origin = [], np.array(geometry.origin_mm)
    for axis, flip in zip(axes, flipped, strict=True):
        column = direction[:, 2 - axis]
        if flip:
            origin = origin + column * spacing[axis] * (geometry.shape[axis] - 1)
        columns.append(-column if flip else column)
    z, y, x = (geometry.shape[axis] for axis in axes)
    return Geometry(
        shape=(z, y, x),
        spacing_mm=None if geometry.spacing_mm is None else triple(spacing[list(axes)]),
        origin_mm=triple(origin),
        direction=tuple(float(value) + 0.0 for value in np.stack(columns[::-1], axis=1).ravel()),
    )


def triple(values: npt.NDArray[np.floating]) -> tuple[float, float, float]:
    """Return three numbers as a record holds them, without a negative zero."""
    a, b, c = (float(value) + 0.0 for value in values)
    return a, b, c


def _nearest_axes(geometry: Geometry) -> tuple[int, ...]:
    """Return for x, y and z of the world which of the array's x, y and z is nearest, all three together."""
    cosines = np.abs(np.reshape(geometry.direction, (3, 3)))
    return max(permutations(range(3)), key=lambda columns: float(cosines[range(3), columns].sum()))
