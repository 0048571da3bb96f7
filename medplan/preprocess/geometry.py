"""Between an input's own grid and the grid that networks work on, exactly and both ways.

An input is turned to canonical axes (an exchange and reversal of array axes, never an interpolation), cropped
to a box and resampled; or, with an atlas, mapped onto the atlas' grid. `Restoration` remembers every step.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from medplan.data.boxes import box_slices
from medplan.data.geometry import Flips, Geometry, Number, Voxel, canonical_geometry, to_canonical, triple
from medplan.errors import PlanError

__all__ = ["Alignment", "Restoration", "index_to_world"]


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How an input lies in the space of an atlas.

    Attributes:
        matrix: 9 numbers, row-major; a point p of the input's world (x, y, z in mm, LPS) is at ``matrix p +
            offset`` in the atlas' world.
        offset: 3 numbers in mm.
        grid: the atlas' prepared grid, which the input is resampled onto.
    """

    matrix: tuple[float, ...]
    offset: tuple[float, float, float]
    grid: Geometry


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """Everything that is needed to bring a result from the prepared grid back to the input's own.

    Attributes:
        native: the input's own grid.
        axes: array axis i of the canonical volume is array axis ``axes[i]`` of the input.
        flipped: whether it runs against it.
        lower, upper: the box that was kept, [lower, upper) in canonical voxels (z, y, x).
        shape: voxels (z, y, x) of the prepared grid, which covers the same extent as the box.
        alignment: set when the input was mapped onto an atlas; then the box is the whole volume.
    """

    native: Geometry
    axes: Voxel
    flipped: Flips
    lower: Voxel
    upper: Voxel
    shape: Voxel
    alignment: Alignment | None = None

    @property
    def box_shape(self) -> Voxel:
        z, y, x = (high - low for low, high in zip(self.lower, self.upper, strict=True))
        return z, y, x

    def canonical(self, array: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """View an array (..., Z, Y, X) of the input's grid along canonical axes; it shares the memory."""
        return to_canonical(array, axes=self.axes, flipped=self.flipped)

    def box(self, array: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """View the box that was kept of an array (..., Z, Y, X) of the input's grid, along canonical axes."""
        view: npt.NDArray[Number] = self.canonical(array)[box_slices((self.lower, self.upper))]
        return view

    def prepared(self) -> Geometry:
        """Return the prepared grid's place in the world (of the atlas, where there is one)."""
        if self.alignment is not None:
            return self.alignment.grid
        canonical = canonical_geometry(self.native, axes=self.axes, flipped=self.flipped)
        if canonical.spacing_mm is None:
            return replace(canonical, shape=self.shape)
        old = np.array(canonical.spacing_mm)
        new = old * self.box_shape / self.shape
        first = np.array(self.lower) * old + (new - old) / 2
        origin = np.array(canonical.origin_mm) + np.reshape(canonical.direction, (3, 3)) @ first[::-1]
        return replace(canonical, shape=self.shape, spacing_mm=triple(new), origin_mm=triple(origin))

    def forward(self, points: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Map points (n, 3) in voxels (z, y, x) of the input's grid to voxels of the prepared grid."""
        canonical = self._canonical_points(np.asarray(points, dtype=np.float64))
        if self.alignment is not None:
            matrix, offset = self.to_atlas()
            return canonical @ matrix.T + offset
        scale = np.array(self.shape) / self.box_shape
        return np.asarray((canonical - self.lower + 0.5) * scale - 0.5)

    def to_atlas(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return (3, 3) and (3,): canonical voxel v (z, y, x) is prepared voxel ``matrix v + offset``."""
        if self.alignment is None:
            raise PlanError("this case was not aligned to an atlas.")
        canonical = canonical_geometry(self.native, axes=self.axes, flipped=self.flipped)
        to_world, origin = index_to_world(canonical)
        atlas_to_world, atlas_origin = index_to_world(self.alignment.grid)
        linear = np.reshape(self.alignment.matrix, (3, 3))
        back = np.linalg.inv(atlas_to_world)
        return back @ linear @ to_world, back @ (linear @ origin + self.alignment.offset - atlas_origin)

    def _canonical_points(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        turned = points[:, list(self.axes)]
        last = np.array([self.native.shape[axis] - 1 for axis in self.axes])
        return np.where(self.flipped, last - turned, turned)


def index_to_world(geometry: Geometry) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return (3, 3) and (3,): voxel v (z, y, x) lies at ``matrix v + origin`` (x, y, z in mm, LPS)."""
    spacing = np.array(geometry.spacing_mm or (1.0, 1.0, 1.0))
    matrix = np.reshape(geometry.direction, (3, 3)) * spacing[::-1]
    return matrix[:, ::-1], np.array(geometry.origin_mm)
