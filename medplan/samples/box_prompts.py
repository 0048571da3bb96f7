"""Boxes as prompts: around masks, moved, cut to a slice, and found in a first answer.

Boxes are x0, y0, x1, y1 in pixels; pixel i reaches from i to i + 1, so a box around pixels 3 and 4 is [3, 5).
Shapes: B images, N boxes, Y X pixels.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = [
    "boxes_of_components", "coverage", "in_slice", "prompting_boxes", "tight_boxes", "whole_image", "widened",
]  # fmt: skip


def whole_image(shape: tuple[int, int], *, like: Tensor) -> Tensor:
    """Return box_4 around an image (height, width), of the device of `like`, float32."""
    return torch.tensor([0.0, 0.0, shape[1], shape[0]]).to(like.device, non_blocking=True)


def tight_boxes(mask_BYX: Tensor) -> tuple[Tensor, Tensor]:
    """Return box_B4 (float32) around each mask, and found_B: whether there is anything in it.

    Without waiting for the device. The box of an empty mask is the whole image.
    """
    rows_BY, columns_BX = mask_BYX.any(2), mask_BYX.any(1)
    (top, bottom), (left, right) = _ends(rows_BY), _ends(columns_BX)
    return torch.stack([left, top, right, bottom], dim=1).float(), rows_BY.any(1)


def widened(box_B4: Tensor, by_B4: Tensor, shape: tuple[int, int]) -> Tensor:
    """Move each side outwards by so many pixels (inwards where negative), and cut the box to the image.

    A box keeps at least one pixel.
    """
    lower, upper = box_B4[:, :2] - by_B4[:, :2], box_B4[:, 2:] + by_B4[:, 2:]
    size = torch.tensor([shape[1], shape[0]]).to(box_B4, non_blocking=True)
    lower = torch.minimum(lower.clamp_min(0), size - 1)
    upper = torch.maximum(torch.minimum(upper, size), lower + 1)
    return torch.cat([lower, upper], dim=1)


def coverage(box_B4: Tensor, cells: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """Return (B, *cells): how much of each cell of an image (height, width) the box covers, 0 to 1."""
    parts = []
    for axis, (number, size) in enumerate(zip(cells, shape, strict=True)):
        edges = torch.linspace(0, number, number + 1, device=box_B4.device)
        # Slices, not a list of indices, for which the host would wait for the device.
        lower_B1, upper_B1 = (box_B4[:, at : at + 1] * (number / size) for at in (1 - axis, 3 - axis))
        upper = torch.minimum(edges[1:], upper_B1)
        parts.append((upper - torch.maximum(edges[:-1], lower_B1)).clamp_min(0))
    return parts[0][:, :, None] * parts[1][:, None, :]


def prompting_boxes(
    mask_BYX: Tensor, jitter_B4: Tensor, whole_B: Tensor, *, outwards: float, inwards: float = 0.0
) -> Tensor:
    """Return box_B4 to prompt with in training: around each mask, its sides moved.

    Args:
        jitter_B4: numbers in [0, 1) drawn for each side.
        whole_B: prompt these with the whole image, as those whose mask is empty.
        outwards, inwards: the farthest that sides are moved, as shares of the image's height.
    """
    shape = (mask_BYX.shape[1], mask_BYX.shape[2])
    box_B4, found_B = tight_boxes(mask_BYX)
    most, least = max(1, math.floor(outwards * shape[0])), -math.floor(inwards * shape[0])
    box_B4 = widened(box_B4, least + torch.floor(jitter_B4 * (most - least)), shape)
    whole_4 = whole_image(shape, like=box_B4)
    return torch.where((found_B & ~whole_B)[:, None], box_B4, whole_4)


def in_slice(
    boxes: npt.NDArray[np.floating], corner: tuple[int, int, int], shape: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Return (n, 4) what a slice sees of boxes (m, 6) of z0, y0, x0, z1, y1, x1 in its case.

    Args:
        corner: of the slice's patch in the case (z, y, x).
        shape: height and width of the patch.

    A box is seen where it covers the middle of the slice and some of the patch.
    """
    z, y, x = corner
    here = boxes[(boxes[:, 0] <= z + 0.5) & (boxes[:, 3] > z + 0.5)]
    moved = here[:, [2, 1, 5, 4]] - np.array([x, y, x, y])
    cut = np.clip(moved, 0, np.array([shape[1], shape[0]] * 2))
    seen = (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])
    return np.asarray(cut[seen], dtype=np.float32)


def boxes_of_components(
    mask_YX: npt.NDArray[np.bool_], *, least_share: float = 0.1, at_most: int = 5
) -> npt.NDArray[np.float32]:
    """Return (n, 4) boxes around the connected parts of a mask, the largest first.

    Args:
        least_share: parts smaller than this share of the largest are left out.
        at_most: the number of boxes.
    """
    from scipy import ndimage

    parts, number = ndimage.label(mask_YX)
    if number == 0:
        return np.zeros((0, 4), dtype=np.float32)
    sizes = np.bincount(parts.ravel())[1:]
    found = ndimage.find_objects(parts)
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] >= least_share * sizes.max()]
    rows = [
        [found[index][1].start, found[index][0].start, found[index][1].stop, found[index][0].stop]
        for index in order[:at_most]
    ]
    return np.array(rows, dtype=np.float32)


def _ends(line_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first true place, and the place after the last one; 0 and N where there is none."""
    length = line_BN.shape[1]
    marks_BN = line_BN.to(torch.uint8)
    first = marks_BN.argmax(1)
    last = length - marks_BN.flip(1).argmax(1)
    return first, last
