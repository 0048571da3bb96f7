"""Displacement fields: warping, composing, integrating, and what a field does to volumes.

A flow (B, 3, Z, Y, X) holds displacements in voxels, channel order z, y, x. Warping pulls: the output at a
voxel p is the input at ``p + flow(p)``. Voxel centres are the samples (corner-aligned), so that no flow
changes nothing.
"""

import contextlib
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "affine_flow",
    "compose",
    "full_precision",
    "integrate",
    "jacobian_determinants",
    "voxel_grid",
    "warp",
]

# Shapes: B batch, C channels, Z Y X voxels.


def full_precision(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Return the context that keeps autocast away from positions, window sums and gradients."""
    kind = tensor.device.type
    if kind not in ("cuda", "cpu", "mps"):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def voxel_grid(like: Tensor) -> Tensor:
    """Return the positions (1, 3, Z, Y, X) of the voxels of (..., Z, Y, X), in voxels."""
    axes = [torch.arange(side, dtype=like.dtype, device=like.device) for side in like.shape[-3:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def warp(
    volume_BCZYX: Tensor,
    flow_B3ZYX: Tensor,
    *,
    mode: Literal["linear", "nearest"] = "linear",
    outside: Literal["border", "zeros"] = "border",
) -> Tensor:
    """Sample a volume at ``p + flow(p)``; positions beyond the volume take its border, or zero.

    Returns: (B, C, *spatial shape of the flow), differentiable in the volume and, if linear, in the flow.
    Differs: the official transformer normalises positions for corner-aligned sampling but samples with the
        other convention, which stretches the volume even where the flow is zero.
    """
    with full_precision(flow_B3ZYX):
        flow = flow_B3ZYX.to(torch.promote_types(flow_B3ZYX.dtype, torch.float32))
        volume = volume_BCZYX.to(flow.dtype)
        sides = torch.tensor([max(side - 1, 1) for side in volume.shape[-3:]], dtype=flow.dtype)
        scale = (2 / sides).to(flow.device, non_blocking=True).view(1, 3, 1, 1, 1)
        positions = (voxel_grid(flow) + flow) * scale - 1
        return F.grid_sample(
            volume,
            # grid_sample wants x, y, z last.
            positions.flip(1).permute(0, 2, 3, 4, 1),
            mode="bilinear" if mode == "linear" else "nearest",
            padding_mode=outside,
            align_corners=True,
        )


def compose(first_B3ZYX: Tensor, second_B3ZYX: Tensor) -> Tensor:
    """Return the flow that has the effect of warping by `first`, and the result by `second`."""
    both: Tensor = second_B3ZYX + warp(first_B3ZYX, second_B3ZYX)
    return both


def integrate(velocity_B3ZYX: Tensor, *, steps: int = 7) -> Tensor:
    """Return the flow of a stationary velocity field after unit time, by scaling and squaring.

    The flow of ``-velocity`` is its inverse.

    Source: Arsigny et al. 2006, doi:10.1007/11866565_113; Dalca et al. 2018, arXiv:1805.04605.
    """
    flow: Tensor = velocity_B3ZYX / 2**steps
    for _ in range(steps):
        flow = compose(flow, flow)
    return flow


def jacobian_determinants(flow_B3ZYX: Tensor) -> Tensor:
    """Return the determinants (B, Z-1, Y-1, X-1) of the Jacobian of p + flow(p), by forward differences.

    At or below 0 space is folded.
    """
    inner = tuple(slice(0, side - 1) for side in flow_B3ZYX.shape[-3:])
    columns = []
    for axis in range(3):
        steps = flow_B3ZYX.diff(dim=axis + 2)[(slice(None), slice(None), *inner)]
        unit = torch.zeros(3, dtype=steps.dtype, device=steps.device)
        unit[axis] = 1
        columns.append(steps + unit.view(1, 3, 1, 1, 1))
    a, b, c = columns
    determinants: Tensor = (torch.linalg.cross(a, b, dim=1) * c).sum(dim=1)
    return determinants


def affine_flow(matrix_B33: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the flow (B, 3, *shape) that maps each voxel p to ``centre + matrix (p - centre)``."""
    grid = voxel_grid(matrix_B33.new_zeros(shape))
    centre = torch.tensor([(side - 1) / 2 for side in shape], dtype=grid.dtype)
    centre = centre.to(grid.device, non_blocking=True)
    offset = grid - centre.view(1, 3, 1, 1, 1)
    flow: Tensor = torch.einsum("bij,kjzyx->bizyx", matrix_B33, offset) - offset
    return flow
