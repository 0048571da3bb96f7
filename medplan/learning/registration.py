"""What registration is judged by: similarity of images, smoothness of flows, agreement of label maps.

All are minimised. Shapes: B batch, C channels, K classes, Z Y X voxels; flows as in `medplan.networks.warp`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medplan.networks.warp import full_precision, jacobian_determinants

__all__ = ["agreement", "field_quality", "local_correlation", "smoothness"]

WINDOW = 9


def local_correlation(
    first_BCZYX: Tensor, second_BCZYX: Tensor, *, window: int = WINDOW, compat: bool = False
) -> Tensor:
    """Return minus the mean squared correlation inside a cube around each voxel, in [-1, 0].

    Args:
        window: side of the cube in voxels, odd.
        compat: count the zeros beyond the border as part of the images, as the official code does.

    Source: Avants et al. 2008, doi:10.1016/j.media.2007.06.004; squared form as in VoxelMorph.
    Differs: windows at the border hold the voxels inside only; with zeros around them two constant images
        correlate.
    """
    with full_precision(first_BCZYX):
        kind = torch.promote_types(first_BCZYX.dtype, torch.float32)
        first, second = first_BCZYX.to(kind), second_BCZYX.to(kind)
        if not compat:
            # Differences of large sums would drown in rounding; a shift changes no correlation.
            first = first - first.detach().mean(dim=(2, 3, 4), keepdim=True)
            second = second - second.detach().mean(dim=(2, 3, 4), keepdim=True)
        stacked = torch.stack([first, second, first * first, second * second, first * second])
        sums = window_sums(stacked.flatten(0, 2), window).view_as(stacked)
        count: Any = float(window**3)
        if not compat:
            count = window_sums(first.new_ones((1, *first.shape[2:])), window)
        sum_a, sum_b, sum_aa, sum_bb, sum_ab = sums
        cross = sum_ab - sum_a * sum_b / count
        # Rounding can leave less than nothing where an image is constant.
        variance_a = (sum_aa - sum_a * sum_a / count).clamp_min(0)
        variance_b = (sum_bb - sum_b * sum_b / count).clamp_min(0)
        squared: Tensor = cross * cross / (variance_a * variance_b + 1e-5)
        return -squared.mean()


def window_sums(volumes_NZYX: Tensor, window: int) -> Tensor:
    """Return the sum over the cube around every voxel, zeros beyond the border."""
    result: Tensor = _WindowSum.apply(volumes_NZYX, window)
    return result


class _WindowSum(torch.autograd.Function):
    """A sum over a symmetric window is its own adjoint, so nothing has to be kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, volumes: Tensor, window: int) -> Tensor:
        ctx.window = window
        return _sum_along_axes(volumes, window)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _sum_along_axes(gradients[0], ctx.window), None


def _sum_along_axes(volumes: Tensor, window: int) -> Tensor:
    """One axis after the other: 3 times 9 additions per voxel in place of 729."""
    for axis in range(3):
        sides = [window if other == axis else 1 for other in range(3)]
        margins = [side // 2 for side in sides]
        if volumes.shape[axis - 3] < window:
            # Pooling refuses windows that are longer than the volume, whatever the padding.
            volumes = F.pad(volumes, [margin for margin in reversed(margins) for _ in range(2)])
            margins = [0, 0, 0]
        volumes = F.avg_pool3d(volumes, sides, stride=1, padding=margins) * window
    return volumes


def smoothness(flow_B3ZYX: Tensor) -> Tensor:
    """Return the mean squared difference (voxels^2) between neighbours, averaged over the axes."""
    flow = flow_B3ZYX.to(torch.promote_types(flow_B3ZYX.dtype, torch.float32))
    parts = [flow.diff(dim=axis).square().mean() for axis in (2, 3, 4) if flow.shape[axis] > 1]
    return torch.stack(parts).sum() / 3


def agreement(first_BKZYX: Tensor, second_BKZYX: Tensor) -> Tensor:
    """Return minus the soft Dice of two maps of probabilities, in [-1, 0].

    The mean is over elements and classes, background included; a class in neither map counts 0.
    """
    kind = torch.promote_types(first_BKZYX.dtype, torch.float32)
    first, second = first_BKZYX.to(kind).flatten(2), second_BKZYX.to(kind).flatten(2)
    overlap = (first * second).sum(2)
    both = first.sum(2) + second.sum(2)
    return -(2 * overlap / both.clamp_min(1e-5)).mean()


def field_quality(flow_B3ZYX: Tensor) -> dict[str, float]:
    """Return what a flow does to space.

    Returns: ``folding_percent`` of voxels whose Jacobian determinant is not positive,
        ``log_jacobian_std`` over the others, ``smoothness`` and ``mean_displacement_voxels``.
    """
    flow = flow_B3ZYX.float()
    determinants = jacobian_determinants(flow)
    positive = determinants[determinants > 0]
    return {
        "folding_percent": 100 * float((determinants <= 0).float().mean()),
        "log_jacobian_std": float(positive.log().std()) if positive.numel() > 1 else 0.0,
        "smoothness": float(smoothness(flow)),
        "mean_displacement_voxels": float(flow.norm(dim=1).mean()),
    }
