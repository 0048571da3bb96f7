"""Distances between the surfaces of two masks, exact, in mm.

Convention: the surface of a mask are its voxels that share a face with a voxel outside it; beyond the edge
of the image is outside. Distances run between voxel centres, every surface voxel counts alike. An axis with a
single voxel (pictures) has no faces. This is what MedPy and MONAI measure; area-weighted surface elements
give slightly smaller distances.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medplan.data.boxes import nonzero_box

__all__ = ["SurfaceScores", "surface_distances", "surface_scores", "surface_voxels"]

Mask = npt.NDArray[np.bool_]
Distances = npt.NDArray[np.float64]

# Distances such as 3 x 0.7 mm are not exact in binary; a tolerance of 2.1 mm should still include them.
ROUNDING_MM = 1e-9

# Per surface voxel a search tree costs this many times what a distance transform costs per voxel of the box
# (measured: 3 to 5 where surfaces fill the box, 9 to 35 where they are sparse and the tree wins anyway).
TREE_COST = 6.0


@dataclass(frozen=True, kw_only=True)
class SurfaceScores:
    """How far two surfaces are apart.

    Attributes:
        hd95: larger of the two directed 95th percentiles, in mm. Source: Taha and Hanbury 2015, section 2.
        assd: mean distance over the voxels of both surfaces together, in mm. Source: Heimann et al. 2009.
        nsd: share of the voxels of both surfaces that lie within the tolerance of the other one, 0 to 1.
            Source: Nikolov et al. 2018, arXiv:1809.04430.  Differs: voxels are counted, not surface areas.
    """

    hd95: float
    assd: float
    nsd: float


def surface_voxels(mask: Mask) -> Mask:
    """Return the voxels of a mask (Z, Y, X) that share a face with a voxel outside it, or the only voxel."""
    if mask.size == 1:
        return mask.copy()
    inner = mask.copy()
    for axis, size in enumerate(mask.shape):
        if size == 1:
            continue
        lower, upper = _slab(axis, slice(None, -1)), _slab(axis, slice(1, None))
        inner[upper] &= mask[lower]
        inner[lower] &= mask[upper]
        inner[_slab(axis, slice(0, 1))] = False
        inner[_slab(axis, slice(-1, None))] = False
    return mask & ~inner


def surface_distances(
    prediction: Mask, reference: Mask, *, spacing_mm: tuple[float, float, float]
) -> tuple[Distances, Distances]:
    """Return, for each surface voxel, the distance to the nearest surface voxel of the other mask.

    Args:
        prediction: (Z, Y, X), not empty.
        reference: same shape, not empty.
        spacing_mm: (z, y, x).

    Returns: distances from the prediction to the reference, and back, in mm, in no particular order.
    Raises: ValueError if a mask is empty or the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"the masks have shapes {prediction.shape} and {reference.shape}")
    # Both masks are empty beyond the box, so cropping changes no surface voxel.
    box = _box(prediction, reference)
    first, second = surface_voxels(prediction[box]), surface_voxels(reference[box])
    shared = first & second
    return _directed(first, second, shared, spacing_mm), _directed(second, first, shared, spacing_mm)


def surface_scores(
    prediction: Mask, reference: Mask, *, spacing_mm: tuple[float, float, float], tolerance_mm: float
) -> SurfaceScores:
    """Compare two surfaces; see `SurfaceScores` and `surface_distances`."""
    outward, inward = surface_distances(prediction, reference, spacing_mm=spacing_mm)
    total = outward.size + inward.size
    near = np.count_nonzero(outward <= tolerance_mm + ROUNDING_MM)
    near += np.count_nonzero(inward <= tolerance_mm + ROUNDING_MM)
    return SurfaceScores(
        hd95=float(max(np.percentile(outward, 95), np.percentile(inward, 95))),
        assd=float((outward.sum() + inward.sum()) / total),
        nsd=float(near / total),
    )


def _slab(axis: int, part: slice) -> tuple[slice, ...]:
    return tuple(part if axis == a else slice(None) for a in range(3))


def _box(prediction: Mask, reference: Mask) -> tuple[slice, ...]:
    box = nonzero_box(prediction, reference)
    if box is None or not (prediction.any() and reference.any()):
        raise ValueError("a surface needs a mask that is not empty")
    # A single slice out of a volume keeps a neighbour: an axis of one voxel is that of a picture.
    alone = [behind - first == 1 for first, behind in zip(*box, strict=True)]
    lower = [first - (one and first > 0) for first, one in zip(box[0], alone, strict=True)]
    upper = [behind + (one and behind == 1) for behind, one in zip(box[1], alone, strict=True)]
    return tuple(slice(first, behind) for first, behind in zip(lower, upper, strict=True))


def _directed(source: Mask, target: Mask, shared: Mask, spacing_mm: tuple[float, float, float]) -> Distances:
    """Return the distance of every voxel of `source` to the nearest of `target`; shared voxels are at 0."""
    apart = source & ~shared
    num_apart, num_shared, num_target = (int(np.count_nonzero(mask)) for mask in (apart, shared, target))
    distances = np.zeros(num_apart + num_shared)
    if num_apart == 0:
        return distances
    if TREE_COST * (num_apart + num_target) > source.size:
        from scipy.ndimage import distance_transform_edt

        distances[:num_apart] = distance_transform_edt(~target, sampling=spacing_mm)[apart]
    else:
        from scipy.spatial import KDTree

        tree = KDTree(np.argwhere(target) * np.asarray(spacing_mm), balanced_tree=False, compact_nodes=False)
        distances[:num_apart] = tree.query(np.argwhere(apart) * np.asarray(spacing_mm))[0]
    return distances
