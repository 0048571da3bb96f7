"""Samples for methods that are prompted: a slice or picture, one of its classes, and how to prompt it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medplan.samples.cases import CaseStore
from medplan.samples.sampling import Element, choose_case, cut, random_patch
from medplan.samples.spatial import Spatial

__all__ = ["Prompted", "depth_of", "masks_of"]


@dataclass(frozen=True)
class Prompted:
    """A slice or picture and one class of it, to be prompted.

    Attributes:
        patch_size: (1, y, x).
        codes: per class those that belong to it.
        whole_share: probability that the whole image is the prompt; such elements show any class, and every
            second one any slice.
        spatial: transforms to draw.

    Elements hold besides ``class``, ``other`` (any class, whether the slice shows it or not), ``whole`` (1.0
    or 0.0), ``jitter`` (4 numbers in [0, 1)) and ``depth``, the slice's position in its volume in [-1, 1].
    """

    patch_size: tuple[int, int, int]
    codes: tuple[tuple[int, ...], ...]
    whole_share: float
    spatial: Spatial

    def __call__(self, store: CaseStore, rng: np.random.Generator) -> Element:
        case = choose_case(store, "labelled", rng)
        whole = bool(rng.random() < self.whole_share)
        places = [
            np.concatenate([case.locations.get(code, np.zeros((0, 3), int)) for code in codes])
            for codes in self.codes
        ]
        present = [number for number, voxels in enumerate(places) if len(voxels)]
        any_slice = not present or (whole and rng.random() < 0.5)
        wanted = present if present and not whole else range(len(self.codes))
        number = int(wanted[int(rng.integers(len(wanted)))])
        z, y, x = random_patch(case, self.patch_size, rng)
        if not any_slice:
            voxels = places[number] if number in present else places[present[0]]
            z = int(voxels[int(rng.integers(len(voxels)))][0])
        element = cut(case, (z, y, x), self.patch_size, transform=self.spatial.draw(rng, self.patch_size))
        return {
            **element,
            "class": number,
            "whole": np.float32(whole),
            "jitter": rng.random(4).astype(np.float32),
            "depth": np.float32(depth_of(z, case.shape[0])),
            "other": int(rng.integers(len(self.codes))),
        }


def depth_of(z: int, number: int) -> float:
    """Return the position of slice z among so many, in [-1, 1]; 0 for a picture."""
    return (2 * z + 1) / number - 1


def masks_of(codes_BYX: Tensor, members: Sequence[Sequence[int]], classes: Sequence[int]) -> Tensor:
    """Return mask_BYX (bool) of one class in each slice.

    Args:
        members: per class the codes that belong to it.
        classes: of each slice.
    """
    masks = []
    for slice_YX, number in zip(codes_BYX, classes, strict=True):
        masks.append(torch.stack([slice_YX == code for code in members[number]]).any(0))
    return torch.stack(masks)
