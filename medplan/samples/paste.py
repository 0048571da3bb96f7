"""Paste parts of labelled patches into unlabelled ones (labelled-to-unlabelled delivery), batched on the
device.

Boxes are drawn without reading anything back from the device.

Source: Zhang, Wang, Li, "S&D Messenger", arXiv:2407.07763 (L2U).

Shapes: B batch, C channels, Z Y X voxels; lower and upper corners (B, 3), upper exclusive.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medplan.errors import MethodError
from medplan.samples.cases import CaseStore

__all__ = ["Boxes", "DrawsPaste", "Pasting", "boxes_around_foreground", "boxes_inside_extent", "paste"]


@dataclass(frozen=True)
class DrawsPaste:
    """A sampler that adds ``paste``: seven numbers in [0, 1).

    Six decide about the element's box and the last about what it is used for. They are drawn with the
    element, so that its box does not depend on the batch or the rank that it is in.
    """

    sampler: Callable[[CaseStore, np.random.Generator], dict[str, Any]]

    def __call__(self, store: CaseStore, rng: np.random.Generator) -> dict[str, Any]:
        element = self.sampler(store, rng)
        return {**element, "paste": rng.random(7, dtype=np.float32)}


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """One box of voxels per sample.

    Attributes:
        lower_B3, upper_B3: corners (z, y, x), integer, inside the patch; equal where there is no box.
    """

    lower_B3: Tensor
    upper_B3: Tensor

    def mask(self, shape: Sequence[int]) -> Tensor:
        """Return (B, 1, Z, Y, X) bool: inside the box."""
        inside = None
        for axis, size in enumerate(shape):
            index = torch.arange(size, device=self.lower_B3.device)
            view = [-1, 1, 1, 1, 1]
            lower, upper = self.lower_B3[:, axis].view(view), self.upper_B3[:, axis].view(view)
            index = index.view([size if other == axis else 1 for other in range(3)])
            within = (index >= lower) & (index < upper)
            inside = within if inside is None else inside & within
        assert inside is not None
        return inside

    def transposed(self) -> "Boxes":
        """Return the boxes with y and x exchanged: where the released code looks for them."""
        order = [0, 2, 1]
        return Boxes(lower_B3=self.lower_B3[:, order], upper_B3=self.upper_B3[:, order])


@dataclass(frozen=True, kw_only=True)
class Pasting:
    """Which part of a patch comes from the labelled and which from the unlabelled one.

    Attributes:
        num_classes: with background.
        fraction: see `boxes_around_foreground`.
        side: of the released square (`boxes_inside_extent`), in place of `fraction`.
        back: probability that the box is unlabelled and all around it labelled.
        compat: compare inside the transposed boxes, as released.
    """

    num_classes: int
    fraction: tuple[float, float]
    side: int | None = None
    back: float = 0.0
    compat: bool = False

    def boxes(self, codes_BZYX: Tensor, uniform_B7: Tensor) -> Boxes:
        """Place the boxes, see `DrawsPaste` for the numbers that decide."""
        uniform = uniform_B7[:, :6]
        if self.side is not None:
            return boxes_inside_extent(codes_BZYX, uniform, side=self.side)
        return boxes_around_foreground(codes_BZYX, self.num_classes, uniform, fraction=self.fraction)

    def masks(self, codes_BZYX: Tensor, uniform_B7: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the labelled patch is, and where both are compared: (B, 1, Z, Y, X) bool.

        A patch without foreground is nowhere.
        """
        boxes = self.boxes(codes_BZYX, uniform_B7)
        inside = boxes.mask(codes_BZYX.shape[1:])
        goes_back = (uniform_B7[:, 6] < self.back) & inside.flatten(1).any(1)
        pasted = inside ^ goes_back.view(-1, 1, 1, 1, 1)
        return pasted, boxes.transposed().mask(codes_BZYX.shape[1:]) if self.compat else pasted


def boxes_around_foreground(
    codes_BZYX: Tensor,
    num_classes: int,
    uniform_B6: Tensor,
    *,
    fraction: tuple[float, float],
    probability: float = 1.0,
) -> Boxes:
    """Place a box around a voxel of a random class in every sample that has foreground.

    The class is uniform among those present, then the voxel among the class's; so small structures are pasted
    too, and every box holds foreground.

    Args:
        codes_BZYX: integer, below num_classes; foreground is > 0.
        uniform_B6: numbers in [0, 1) that decide, see `DrawsPaste`.
        fraction: each side is this share of the patch's, uniform in [low, high], at least one voxel.
        probability: that a sample gets a box at all.

    Differs: the released square needs an extent of the foreground larger than itself and may be centred on
        background inside it.
    """
    shape = codes_BZYX.shape[1:]
    flat = codes_BZYX.flatten(1).long().clamp(min=0)
    counts = torch.zeros(len(flat), num_classes, dtype=torch.long, device=flat.device)
    counts = counts.scatter_add(1, flat, torch.ones_like(flat))
    present = (counts[:, 1:] > 0).cumsum(1)
    number = (uniform_B6[:, 5:] * present[:, -1:]).long()
    code = 1 + (present > number).int().argmax(1, keepdim=True)
    rank = (uniform_B6[:, :1] * counts.gather(1, code)).long()
    chosen = ((flat == code).cumsum(1) > rank).int().argmax(1)
    plane = shape[1] * shape[2]
    centre = torch.stack([chosen // plane, chosen % plane // shape[2], chosen % shape[2]], 1)
    sizes = torch.tensor(shape).to(flat.device, non_blocking=True)
    low, high = fraction
    side = (sizes * (low + (high - low) * uniform_B6[:, 1:4])).round().long().clamp(min=1)
    wanted = (flat > 0).any(1) & (uniform_B6[:, 4] < probability)
    return _clipped(centre, side, sizes, wanted)


def boxes_inside_extent(codes_BZYX: Tensor, uniform_B6: Tensor, *, side: int) -> Boxes:
    """Place the released square: centred anywhere in the extent of the foreground, if that is larger than it.

    Args:
        uniform_B6: as in `boxes_around_foreground`.
        side: voxels along y and x.
    """
    shape, device = codes_BZYX.shape[1:], codes_BZYX.device
    foreground = codes_BZYX > 0
    first, last = [], []
    for axis in range(1, 4):
        along = foreground.amax(dim=[other for other in range(1, 4) if other != axis]).int()
        first.append(along.argmax(1))
        last.append(along.shape[1] - 1 - along.flip(1).argmax(1))
    lowest, highest = torch.stack(first, 1), torch.stack(last, 1)
    extent = highest - lowest
    large = (extent[:, 1:] > side).all(1) & foreground.flatten(1).any(1)
    centre = lowest + (uniform_B6[:, 1:4] * (extent + 1)).long()
    sizes, sides = (
        torch.tensor(three).to(device, non_blocking=True) for three in (shape, (shape[0], side, side))
    )
    return _clipped(centre, sides.expand(len(centre), 3), sizes, large)


def paste(into: Tensor, source: Tensor, mask_B1ZYX: Tensor) -> Tensor:
    """Return `into` with `source` inside the mask; both (B, C, Z, Y, X) or both (B, Z, Y, X).

    Raises: MethodError if the patches differ in size.
    """
    if into.shape != source.shape:
        raise MethodError(
            f"labelled and unlabelled patches should have one shape to be pasted into each other, found "
            f"{tuple(source.shape)} and {tuple(into.shape)}."
        )
    return torch.where(mask_B1ZYX if into.ndim == 5 else mask_B1ZYX.squeeze(1), source, into)


def _clipped(centre: Tensor, side: Tensor, sizes: Tensor, wanted: Tensor) -> Boxes:
    lower = centre - side // 2
    upper = (lower + side).clamp(max=sizes)
    lower = lower.clamp(min=0)
    return Boxes(lower_B3=lower, upper_B3=torch.where(wanted[:, None], upper, lower))
