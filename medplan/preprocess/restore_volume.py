"""Images and displacements from the prepared grid back onto the input's own."""

import numpy as np
import numpy.typing as npt
from scipy.ndimage import affine_transform

from medplan.preprocess.geometry import Restoration

__all__ = ["restore_volume", "voxels_to_mm"]

Floats = npt.NDArray[np.float32]


def restore_volume(array: Floats, restoration: Restoration) -> Floats:
    """Interpolate (C, Z, Y, X) linearly onto the input's own grid; 0 where it is not covered.

    Returns: (C, *native shape) float32.
    """
    native = np.zeros((len(array), *restoration.native.shape), dtype=np.float32)
    box = restoration.box(native)
    if restoration.alignment is not None:
        matrix, offset = restoration.to_atlas()
        outside = "constant"
    else:
        # Voxels are areas: the first and the last reach half a voxel beyond their centre.
        scale = np.array(restoration.shape) / restoration.box_shape
        matrix, offset, outside = np.diag(scale), 0.5 * scale - 0.5, "nearest"
    for source, target in zip(array, box, strict=True):
        target[...] = affine_transform(
            source, matrix, offset, output_shape=target.shape, order=1, mode=outside
        )
    return native


def voxels_to_mm(displacement: Floats, restoration: Restoration) -> Floats:
    """Turn vectors z, y, x in voxels of the prepared grid into vectors x, y, z in mm of its world (LPS).

    Without a spacing they stay in pixels.
    """
    grid = restoration.prepared()
    spacing = np.array(grid.spacing_mm or (1.0, 1.0, 1.0))
    along_axes = (displacement * spacing[:, None, None, None])[::-1]
    direction = np.reshape(grid.direction, (3, 3))
    turned: Floats = np.einsum("ij,jzyx->izyx", direction, along_axes).astype(np.float32)
    return turned
