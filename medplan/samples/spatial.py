"""Rotation, shear, scaling and elastic deformation of patches: drawn by the sampler, applied on the device.

The sampler draws a transform first, and then reads the box of voxels that the transformed patch covers. A
larger box is read only for patches that are transformed.

Shapes: C channels, Z Y X voxels of the box that was read, P the patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from medplan.randomness import seeded

__all__ = ["Spatial", "Transform", "resample_patch", "sampling_grid"]

Voxel = tuple[int, int, int]
Matrix = tuple[tuple[float, float, float], ...]

_ELASTIC_GRID = 12
"""Control points per axis of an elastic field, which is smooth and needs no more."""


@dataclass(frozen=True, kw_only=True)
class Transform:
    """One drawn transform of one patch.

    Attributes:
        matrix: maps an offset (z, y, x) from the patch centre to an offset from the box centre, in voxels.
        box: shape of the box to read; its centre is the patch's.
        scales_only: the matrix is diagonal and maps the patch exactly onto the box.
        displacement: (3, g, g, g) further offset (z, y, x) in voxels on a coarse grid over the patch, or
            None.
    """

    matrix: Matrix
    box: Voxel
    scales_only: bool
    displacement: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class Spatial:
    """Which transforms are drawn, and how often. The defaults are nnU-Net's for 3-D patches.

    Attributes:
        rotation_probability, degrees: rotation by up to +- `degrees` about each axis that is rotated about.
        scaling_probability, scale: size of the region that fills the patch; half of the draws shrink it.
        in_plane: leave the slice axis alone (2-D patches, and 3-D patches with thick slices).
        shear_degrees: slices are sheared along x by up to +- this angle whenever they are rotated.
        elastic_probability, elastic_voxels: smooth random displacement with this greatest length; off by
            default as in nnU-Net.
    """

    rotation_probability: float = 0.2
    degrees: float = 30.0
    scaling_probability: float = 0.2
    scale: tuple[float, float] = (0.7, 1.4)
    in_plane: bool = False
    shear_degrees: float = 0.0
    elastic_probability: float = 0.0
    elastic_voxels: float = 6.0

    @classmethod
    def for_patch(cls, patch_size: Sequence[int], *, elastic_probability: float = 0.0) -> "Spatial":
        """Choose ranges as nnU-Net does: all around in plane, less where that would turn a long side out."""
        depth, *plane = patch_size
        in_plane = depth == 1 or max(patch_size) / depth > 3
        if depth == 1:
            degrees = 15.0 if max(plane) / min(plane) > 1.5 else 180.0
        else:
            degrees = 180.0 if in_plane else 30.0
        return cls(degrees=degrees, in_plane=in_plane, elastic_probability=elastic_probability)

    def draw(self, rng: np.random.Generator, patch_size: Voxel) -> Transform | None:
        """Draw a transform for a patch, or None to leave it as it is."""
        angles, shear = np.zeros(3), np.eye(3)
        if rng.random() < self.rotation_probability:
            angles = np.deg2rad(rng.uniform(-self.degrees, self.degrees, 3))
            if self.in_plane:
                angles[1:] = 0.0
            if self.shear_degrees > 0:
                shear[2, 1] = np.tan(np.deg2rad(rng.uniform(-self.shear_degrees, self.shear_degrees)))
        zoom = self._draw_scale(rng) if rng.random() < self.scaling_probability else 1.0
        displacement = None
        if rng.random() < self.elastic_probability:
            displacement = self._draw_displacement(rng, patch_size)
        turns = bool(angles.any() or shear[2, 1])
        if not turns and zoom == 1.0 and displacement is None:
            return None
        scales = np.array([1.0 if self.in_plane else zoom, zoom, zoom])
        if not turns and displacement is None:
            half = np.round((scales - 1) * patch_size / 2).astype(int)
            box = np.maximum(np.array(patch_size) + 2 * half, 1)
            return Transform(matrix=_rows(np.diag(box / patch_size)), box=_voxel(box), scales_only=True)
        matrix = _rotation(angles) @ shear @ np.diag(scales)
        reach = np.abs(matrix) @ np.array(patch_size)
        margin = np.ceil((reach - patch_size) / 2).astype(int) + 1
        if displacement is not None:
            margin += int(np.ceil(self.elastic_voxels))
        if self.in_plane:
            margin[0] = 0
        box = np.maximum(np.array(patch_size) + 2 * margin, 1)
        return Transform(matrix=_rows(matrix), box=_voxel(box), scales_only=False, displacement=displacement)

    def _draw_scale(self, rng: np.random.Generator) -> float:
        low, high = self.scale
        shrinks = rng.random() < 0.5 and low < 1
        return float(rng.uniform(low, 1.0) if shrinks else rng.uniform(max(low, 1.0), high))

    def _draw_displacement(self, rng: np.random.Generator, patch_size: Voxel) -> npt.NDArray[np.float32]:
        from batchgenerators.augmentations.utils import elastic_deform_coordinates_2

        grid = tuple(1 if size == 1 else _ELASTIC_GRID for size in patch_size)
        longest = float(rng.uniform(0.0, self.elastic_voxels))
        with seeded(int(rng.integers(2**32))):
            # It divides by the largest value of each axis; zeros as coordinates leave the displacement
            # itself.
            field = elastic_deform_coordinates_2(np.zeros((3, *grid)), [1.5] * 3, [longest] * 3)
        if self.in_plane:
            field[0] = 0.0
        return np.asarray(field, dtype=np.float32)


def resample_patch(
    source: Tensor,
    transform: Transform,
    patch_size: Voxel,
    *,
    mode: Literal["linear", "nearest"],
    grid: Tensor | None = None,
) -> Tensor:
    """Resample the box that a sampler read into the patch.

    Args:
        source: (C, *transform.box) float32 for ``linear``, any type for ``nearest``; voxels outside count as
            0.
        grid: what `sampling_grid` gives, where it has been asked for already.

    Returns: (C, *patch_size), the type of `source`.
    Differs: nnU-Net interpolates labels linearly per class and takes the arg-max; nearest is five times
        faster and moves boundaries by less than half a voxel.
    """
    # Codes as float32: grid_sample takes no integers, and float16 cannot hold them all.
    values = source.float()
    if transform.scales_only:
        how = "trilinear" if mode == "linear" else "nearest-exact"
        resampled = F.interpolate(values[None], size=list(patch_size), mode=how)
        return resampled[0].to(source.dtype)
    grid = sampling_grid(transform, patch_size, source.device) if grid is None else grid
    planes = values.flatten(0, 1) if _keeps_slices(transform) else values
    how = "bilinear" if mode == "linear" else "nearest"
    sampled = F.grid_sample(planes[None], grid, mode=how, align_corners=False)
    return sampled.to(source.dtype).reshape(len(source), -1, *patch_size[1:])


def _keeps_slices(transform: Transform) -> bool:
    (first, *_), displacement = transform.matrix, transform.displacement
    is_in_plane = first == (1.0, 0.0, 0.0) and all(row[0] == 0.0 for row in transform.matrix[1:])
    return is_in_plane and (displacement is None or displacement.shape[1] == 1)


def sampling_grid(transform: Transform, patch_size: Voxel, device: torch.device) -> Tensor:
    """Return where in the box every voxel of the patch is, each axis in [-1, 1], as `F.grid_sample` takes it.

    Returns: (1, Z, Y, X, 3) of x, y, z; where slices stay what they are, (1, Y, X, 2) of x, y.
    """
    axes = (1, 2) if _keeps_slices(transform) else (0, 1, 2)
    # Half-widths of a box are the unit, and x comes first.
    rows = [[transform.matrix[row][axis] * 2 / transform.box[row] for row in reversed(axes)] for axis in axes]
    factors = torch.tensor(rows).to(device, non_blocking=True)
    rays = []
    for number, axis in enumerate(axes):
        size = patch_size[axis]
        ray = factors[number][:, None] * torch.arange((1 - size) / 2, size / 2, device=device)
        rays.append(ray.view(-1, *(size if other == axis else 1 for other in axes)))
    # Far cheaper than a matrix product per voxel.
    position = reduce(torch.add, rays)
    if transform.displacement is not None:
        coarse = torch.from_numpy(transform.displacement).to(device, non_blocking=True)[None]
        shape = [patch_size[axis] if axis in axes else 1 for axis in (0, 1, 2)]
        bend = F.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)[0]
        for number, axis in enumerate(reversed(axes)):
            position[number] += (bend[axis] * (2 / transform.box[axis])).view_as(position[number])
    return position.movedim(0, -1)[None]


def _rotation(angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def _rows(matrix: npt.NDArray[np.float64]) -> Matrix:
    return tuple((float(a), float(b), float(c)) for a, b, c in matrix)


def _voxel(values: npt.NDArray[np.integer]) -> Voxel:
    z, y, x = (int(value) for value in values)
    return z, y, x
