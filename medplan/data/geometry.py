"""Where the voxels of an image lie."""

from dataclasses import dataclass

import numpy as np

__all__ = ["Geometry", "slice_axis"]

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
        matrix = np.array(self.direction).reshape(3, 3)
        letters = ["", "", ""]
        left = np.abs(matrix)
        for _ in range(3):
            row, column = (int(i) for i in np.unravel_index(np.argmax(left), left.shape))
            letters[column] = ("RL", "AP", "IS")[row][int(matrix[row, column] > 0)]
            left[row, :] = left[:, column] = -1.0
        return "".join(letters)

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
