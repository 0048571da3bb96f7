"""What a promptable network answers about a slice: a pass per class and box; boxes where none is given."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medplan.networks.implicit_sam import ImplicitSam
from medplan.samples.box_prompts import boxes_of_components, in_slice, whole_image, widened
from medplan.samples.cases import Case
from medplan.samples.prompted import depth_of

__all__ = ["NOTHING", "PromptedAnswers"]

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
        find_margin: boxes that were found are widened by this share of their sides.
    """

    network: ImplicitSam
    names: tuple[str, ...]
    is_exclusive: bool
    shape: tuple[int, int]
    openness: float = 1.0
    find_margin: float = 0.05

    def of_slices(
        self, case: Case, shape: tuple[int, int], embed: Callable[[Tensor], Tensor]
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
        embedding_1Chw: Tensor,
        case: Case,
        corner: tuple[int, int, int],
        shape: tuple[int, int],
        flipped: Sequence[int] = (),
    ) -> Tensor:
        """Return logits (K, *shape) of one slice, on a grid of any shape over it.

        Args:
            embedding_1Chw: of the slice.
            corner: of the slice in its case (z, y, x).
            flipped: axes (1 y, 2 x) along which the slice is mirrored.
        """
        depth = depth_of(min(max(corner[0], 0), case.shape[0] - 1), case.shape[0])
        first = int(self.is_exclusive)
        field_KYX = torch.full((first + len(self.names), *shape), NOTHING, device=embedding_1Chw.device)
        field_KYX[:first] = 0
        for number, field_YX in enumerate(field_KYX[first:]):
            box_N4 = self.given(case, number, corner, flipped, like=embedding_1Chw)
            if box_N4 is None:
                box_N4 = self.found(embedding_1Chw, number, depth, case.prompts.get("mode", "auto"))
            for box_4 in box_N4:
                answer_YX = self.answer(embedding_1Chw, box_4, number, shape, depth)
                torch.maximum(field_YX, answer_YX.float(), out=field_YX)
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

    def found(self, embedding_1Chw: Tensor, number: int, depth: float, mode: str) -> Tensor:
        """Return the boxes (N, 4) to prompt with where none are given; the whole image if none is found."""
        whole_4 = whole_image(self.shape, like=embedding_1Chw)
        if mode == "none":
            return whole_4[None]
        first = self.answer(embedding_1Chw, whole_4, number, self.shape, depth)
        box_N4 = torch.from_numpy(boxes_of_components((first > 0).cpu().numpy())).to(whole_4)
        if len(box_N4) == 0:
            return whole_4[None]
        sides_N4 = (box_N4[:, 2:] - box_N4[:, :2]).repeat(1, 2)
        return widened(box_N4, self.find_margin * sides_N4, self.shape)

    def answer(
        self, embedding_1Chw: Tensor, box_4: Tensor, number: int, shape: tuple[int, int], depth: float
    ) -> Tensor:
        """Return logits of one class, prompted with one box, on a grid of any shape."""
        map_1CYX = self.network.upscaled(embedding_1Chw, box_4[None])
        return self.network.decoder.answer(
            map_1CYX, self.network.positional(), shape, number, depth=depth, openness=self.openness
        )
