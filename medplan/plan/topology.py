"""The shape of a convolutional encoder: where it down-samples, and how wide it is."""

import math
from typing import Literal

from medplan.plan.schema import Pyramid

__all__ = ["make_pyramid", "round_up"]

SMALLEST_SIDE = 4
"""Voxels that a side of the coarsest feature map keeps, as in nnU-Net."""

MAX_FEATURES = {2: 512, 3: 320}
RESIDUAL_BLOCKS = (1, 3, 4, 6)
"""Per stage, the last one repeated: nnU-Net's ResEnc."""

Voxels = tuple[int, int, int]


def make_pyramid(
    patch_size: Voxels,
    spacing_mm: tuple[float, float, float] | None,
    dims: Literal[2, 3],
    *,
    base_features: int = 32,
    residual_blocks: tuple[int, ...] = RESIDUAL_BLOCKS,
) -> Pyramid:
    """Shape an encoder for a patch.

    An axis is halved while at least 4 voxels remain, but not while its voxels are two or more times coarser
    than the finest ones; kernels are 1 along such an axis until the finer axes have caught up. Features
    double per stage.

    Args:
        patch_size: voxels (z, y, x); z is ignored in two dimensions.
        spacing_mm: of the grid; None counts as cubic voxels.
        base_features: channels of the first stage.
        residual_blocks: per stage; the last repeats.

    Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, supplement; blocks of arXiv:2404.09556.
    """
    size = [float(side) for side in patch_size]
    spacing = list(spacing_mm or (1.0, 1.0, 1.0))
    axes = (0, 1, 2) if dims == 3 else (1, 2)
    kernel = [1, 1, 1]
    strides: list[Voxels] = [(1, 1, 1)]
    kernels: list[Voxels] = []
    while True:
        finest = min(spacing[axis] for axis in axes)
        kernel = [
            3 if axis in axes and (spacing[axis] < 2 * finest or kernel[axis] == 3) else 1
            for axis in range(3)
        ]
        kernels.append((kernel[0], kernel[1], kernel[2]))
        halved = _halved(size, spacing, axes)
        if not halved:
            break
        stride = [2 if axis in halved else 1 for axis in range(3)]
        strides.append((stride[0], stride[1], stride[2]))
        for axis in halved:
            size[axis] = math.ceil(size[axis] / 2)
            spacing[axis] *= 2
    kernels[-1] = (3 if dims == 3 else 1, 3, 3)
    stages = len(strides)
    return Pyramid(
        features=tuple(min(base_features * 2**stage, MAX_FEATURES[dims]) for stage in range(stages)),
        strides=tuple(strides),
        kernels=tuple(kernels),
        blocks=tuple(residual_blocks[min(stage, len(residual_blocks) - 1)] for stage in range(stages)),
        decoder_blocks=(1,) * (stages - 1),
    )


def _halved(size: list[float], spacing: list[float], axes: tuple[int, ...]) -> list[int]:
    large = [axis for axis in axes if size[axis] >= 2 * SMALLEST_SIDE]
    if not large:
        return []
    finest = min(spacing[axis] for axis in large)
    chosen = [axis for axis in large if spacing[axis] < 2 * finest]
    # A last lonely axis is halved only if it stays clearly above the smallest side.
    if len(chosen) == 1 and size[chosen[0]] < 3 * SMALLEST_SIDE:
        return []
    return chosen


def round_up(size: Voxels, multiple: Voxels) -> Voxels:
    """Return the smallest multiples that are at least `size`."""
    sides = [-(-side // step) * step for side, step in zip(size, multiple, strict=True)]
    return sides[0], sides[1], sides[2]
