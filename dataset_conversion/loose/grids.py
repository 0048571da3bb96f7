"""Voxel grids of one case: labels that were cropped or mirrored are put back, other channels resampled."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dataset_conversion.volumes import Grid, Volume

__all__ = ["coverage", "on_grid", "placed", "resampled", "same_grid"]


def same_grid(one: Grid, other: Grid) -> bool:
    """Whether two grids have the same voxels, but for a tenth of a voxel at their corners."""
    if one[0][:3] != other[0][:3]:
        return False
    lengths = (*one[0], 1, 1)[:3]
    corners = np.array([(*corner, 1) for corner in np.ndindex(2, 2, 2)]) * [*lengths, 1]
    apart = corners @ (np.linalg.inv(one[1]) @ other[1] - np.eye(4)).T
    return bool(np.abs(apart).max() < 0.1)


def placed(grid: Grid, onto: Grid) -> tuple[list[int], list[int], npt.NDArray[np.int64]]:
    """Return how a cropped, padded or mirrored grid lies on another one: axes in their order, signs, offset.

    Raises: ValueError in words if the grids do not share their voxels.
    """
    lengths, shape = grid[0], onto[0][:3]
    step = np.linalg.inv(onto[1]) @ grid[1]
    if 1 in lengths and 1 in shape:  # one slice is as thick as another
        step[:3, lengths.index(1)] /= np.linalg.norm(step[:3, lengths.index(1)])
    turn = np.rint(step[:3, :3])
    is_turn = (np.abs(turn).sum(axis=0) == 1).all() and (np.abs(turn).sum(axis=1) == 1).all()
    longest = max(*lengths, *shape)
    if len(lengths) != 3 or not is_turn or np.abs(step[:3, :3] - turn).max() * longest > 0.5:
        raise ValueError(f"its grid is not that of the scan, {_grid_in_words(grid)} against {shape} voxels")
    # where the first voxel of the turned label lies: a mirrored axis begins with the label's last voxel
    corner = np.where(turn.T < 0, np.array(lengths)[:, None] - 1, 0).sum(axis=1)
    start = step[:3, :3] @ corner + step[:3, 3]
    offset = np.rint(start).astype(int)
    if np.abs(start - offset).max() > 0.25:
        raise ValueError(
            f"it lies between the voxels of the scan, {np.abs(start - offset).max():.2f} voxels off"
        )
    return np.abs(turn).argmax(axis=1).tolist(), turn.sum(axis=1).astype(int).tolist(), offset


def on_grid(label: Volume, shape: Sequence[int], affine: npt.NDArray[np.float64]) -> Volume:
    """Return a label that was cropped, padded or mirrored on the grid it was drawn on; no value is resampled.

    Args:
        label: voxels (X, Y, Z).
        shape, affine: the grid to put it on, (X, Y, Z) and voxel index to RAS millimetres.

    Returns: the same voxels on that grid, 0 where the label does not reach.
    Raises: ValueError in words if the grids do not share their voxels, or some of the label is outside.
    """
    shape = tuple(shape[:3])
    axes, signs, offset = placed((label.voxels.shape, label.affine), (shape, affine))
    voxels = label.voxels.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    if voxels.shape == shape and not offset.any():
        return Volume(voxels=voxels, affine=affine)
    result = np.zeros(shape, dtype=voxels.dtype)
    low, high = np.maximum(offset, 0), np.minimum(offset + voxels.shape, shape)
    if (low >= high).any():
        raise ValueError("it lies outside of the scan")
    inner = tuple(slice(a, b) for a, b in zip(low - offset, high - offset, strict=True))
    result[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = voxels[inner]
    if np.count_nonzero(result) < np.count_nonzero(voxels):
        raise ValueError("a part of it lies outside of the scan")
    return Volume(voxels=result, affine=affine)


def coverage(grid: Grid, other: Grid) -> float:
    """Return which share of the second grid lies inside of the first."""
    shape = other[0][:3]
    lines = [np.linspace(0, length - 1, 9) for length in shape]
    points = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 3)
    step = np.linalg.inv(grid[1]) @ other[1]
    inside = points @ step[:3, :3].T + step[:3, 3]
    return float(((inside > -1) & (inside < np.array(grid[0][:3]))).all(axis=1).mean())


def resampled(image: Volume, grid: Grid) -> Volume:
    """Return an image on another grid, linear between its voxels and its lowest value outside of them."""
    from scipy.ndimage import affine_transform

    voxels = np.asarray(image.voxels, dtype=np.float32).reshape(image.voxels.shape[:3])
    step = np.linalg.inv(image.affine) @ grid[1]
    lowest = float(voxels.min())
    moved = affine_transform(
        voxels, step, output_shape=grid[0][:3], order=1, mode="grid-constant", cval=lowest
    )
    return Volume(voxels=moved, affine=grid[1])


def _grid_in_words(grid: Grid) -> str:
    spacing = ", ".join(f"{value:.3g}" for value in np.linalg.norm(grid[1][:3, :3], axis=0))
    return f"{tuple(grid[0])} voxels of {spacing} mm"
