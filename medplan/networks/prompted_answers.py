"""What a promptable network answers about a slice: a pass per class and box; boxes where none is given."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from medplan.networks.implicit_sam import ImplicitSam, Maps
from medplan.samples.box_prompts import boxes_of_components, coverage, in_slice, whole_image, widened
from medplan.samples.cases import Case
from medplan.samples.prompted import depth_of

__all__ = ["NOTHING", "PromptedAnswers"]

FOUND_MARGIN = 0.05
"""Boxes that a first look found are widened by this share of their sides."""
CUT_MARGIN = 0.1
"""The same of boxes beyond which the answer of a young network is not believed."""
NOTHING = -20.0
"""Logit where the boxes that were given leave a slice out."""


@dataclass(frozen=True, kw_only=True)
class PromptedAnswers:
    """Answers of a network in eval mode.

    Prompts are read from `Case.prompts`: ``boxes`` (n, 6), or such per class name, in voxels of the case;
    else ``mode`` says whether the whole image is the prompt (``none``) or a first look at it finds boxes
    (``auto``).

    Attributes:
        network: answers.
        names: of its classes.
        is_exclusive: answer with a first output for background, 0: it wins where every class is less probable
            than 1/2.
        shape: height and width of the images that it sees.
        openness: of its coordinate code.
        is_young: the network learnt from nothing, and is not trusted far: nothing is found outside of a box,
            widened by `CUT_MARGIN`; where a first look found the boxes, its logits count as much as theirs.
    """

    network: ImplicitSam
    names: tuple[str, ...]
    is_exclusive: bool
    shape: tuple[int, int]
    openness: float = 1.0
    is_young: bool = False

    def of_slices(
        self, case: Case, shape: tuple[int, int], embed: Callable[[Tensor], Maps]
    ) -> Iterator[Tensor]:
        """Yield logits (K, 1, *shape) slice by slice of a case whose slices are whole images.

        Args:
            embed: the image encoder, from (1, C, Y, X) pixels on the CPU.
        """
        for z in range(case.shape[0]):
            pixels = torch.from_numpy(case.image((z, 0, 0), (z + 1, *case.shape[1:])))
            yield self.of_slice(embed(pixels[None, :, 0]), case, (z, 0, 0), shape).unsqueeze(1)

    def of_slice(
        self,
        maps: Maps,
        case: Case,
        corner: tuple[int, int, int],
        shape: tuple[int, int],
        flipped: Sequence[int] = (),
    ) -> Tensor:
        """Return logits (K, *shape) of one slice, on a grid of any shape over it.

        Args:
            maps: of the slice, a batch of one.
            corner: of the slice in its case (z, y, x).
            flipped: axes (1 y, 2 x) along which the slice is mirrored.
        """
        depth = depth_of(min(max(corner[0], 0), case.shape[0] - 1), case.shape[0])
        first = int(self.is_exclusive)
        field_KYX = torch.zeros((first + len(self.names), *shape), device=maps[0].device)
        for number, field_YX in enumerate(field_KYX[first:]):
            box_N4 = self.given(case, number, corner, flipped, like=maps[0])
            if box_N4 is None:
                mode = case.prompts.get("mode", "auto")
                field_YX.copy_(self.unprompted(maps, number, shape, depth, mode))
            else:
                field_YX.copy_(self.united(maps, box_N4, number, shape, depth))
        return field_KYX

    def given(
        self,
        case: Case,
        number: int,
        corner: tuple[int, int, int],
        flipped: Sequence[int] = (),
        *,
        like: Tensor,
    ) -> Tensor | None:
        """Return the boxes (N, 4) of a class in a slice, None if none were given for it in the whole case."""
        boxes = case.prompts.get("boxes")
        if isinstance(boxes, Mapping):
            boxes = boxes.get(self.names[number])
        if boxes is None:
            return None
        box_N4 = in_slice(boxes, corner, self.shape)
        for first, axis, length in ((0, 2, self.shape[1]), (1, 1, self.shape[0])):
            if axis in flipped:
                box_N4[:, [first, first + 2]] = length - box_N4[:, [first + 2, first]]
        return torch.from_numpy(box_N4).to(like.device)

    def unprompted(self, maps: Maps, number: int, shape: tuple[int, int], depth: float, mode: str) -> Tensor:
        """Return logits of one class on a grid of any shape where no boxes are given."""
        whole_4 = whole_image(self.shape, like=maps[0])
        if mode == "none":
            return self.answer(maps, whole_4, number, shape, depth)
        first_YX = self.answer(maps, whole_4, number, self.shape, depth)
        box_N4 = torch.from_numpy(boxes_of_components((first_YX > 0).cpu().numpy())).to(whole_4)
        if len(box_N4) == 0:
            return _resized(first_YX, shape)
        box_N4 = widened(box_N4, FOUND_MARGIN * _sides(box_N4), self.shape)
        field_YX = self.united(maps, box_N4, number, shape, depth)
        if self.is_young:
            field_YX = (field_YX + _resized(first_YX, shape)) / 2
        return field_YX

    def united(self, maps: Maps, box_N4: Tensor, number: int, shape: tuple[int, int], depth: float) -> Tensor:
        """Return the largest logits of one class over boxes (N, 4), `NOTHING` where there are none."""
        field_YX = torch.full(shape, NOTHING, device=maps[0].device)
        for box_4 in box_N4:
            answer_YX = self.answer(maps, box_4, number, shape, depth)
            if self.is_young:
                limit_14 = widened(box_4[None], CUT_MARGIN * _sides(box_4[None]), self.shape)
                answer_YX = answer_YX.where(coverage(limit_14, shape, self.shape)[0] > 0, NOTHING)
            torch.maximum(field_YX, answer_YX, out=field_YX)
        return field_YX

    def answer(self, maps: Maps, box_4: Tensor, number: int, shape: tuple[int, int], depth: float) -> Tensor:
        """Return logits of one class, prompted with one box, on a grid of any shape."""
        found_YX = self.network.answer(maps, box_4, shape, number, depth=depth, openness=self.openness)
        return found_YX.float()


def _sides(box_N4: Tensor) -> Tensor:
    return (box_N4[:, 2:] - box_N4[:, :2]).repeat(1, 2)


def _resized(field_YX: Tensor, shape: tuple[int, int]) -> Tensor:
    return F.interpolate(field_YX[None, None], shape, mode="bilinear")[0, 0]
