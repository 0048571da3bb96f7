"""Pairs of an atlas with its label and another image without, as registration learns from."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from medplan.errors import MethodError
from medplan.samples.cases import Case, CaseStore
from medplan.samples.sampling import cut, random_patch

__all__ = ["AtlasAndImage", "around", "beside"]

Voxel = tuple[int, int, int]


@dataclass(frozen=True)
class AtlasAndImage:
    """``image`` and ``label`` of the atlas, and ``unlabelled_image`` of another case at the same place.

    ``case`` holds both keys, joined by a space.

    Attributes:
        patch_size: voxels (z, y, x); images that are smaller are centred in it, zeros around them.
        roles: of the cases that the other image is drawn from, all with equal chances.
    """

    patch_size: Voxel
    roles: tuple[str, ...] = ("unlabelled",)

    def __call__(self, store: CaseStore, rng: np.random.Generator) -> dict[str, Any]:
        atlases = store.role("atlas")
        others = [key for role in self.roles for key in store.role(role)]
        for found, role in ((atlases, "atlas"), (others, " or ".join(self.roles))):
            if not found:
                raise MethodError(f"The fold has no case of role '{role}'; look at 'folds' in the plan.")
        atlas = store[atlases[int(rng.integers(len(atlases)))]]
        other = store[others[int(rng.integers(len(others)))]]
        lower = random_patch(other, self.patch_size, rng)
        labelled = cut(atlas, beside(atlas, other, lower), self.patch_size)
        unlabelled = cut(other, lower, self.patch_size, with_label=False)
        return {
            "image": labelled["image"],
            "label": labelled["label"],
            "unlabelled_image": unlabelled["image"],
            "case": f"{atlas.key} {other.key}",
        }


def beside(atlas: Case, other: Case, corner: Voxel) -> Voxel:
    """Return the corner in the atlas that lies where `corner` does in the other case, centre on centre."""
    z, y, x = (
        low + (own - size) // 2 for low, own, size in zip(corner, atlas.shape, other.shape, strict=True)
    )
    return z, y, x


def around(case: Case, patch_size: Voxel) -> tuple[Voxel, Voxel, tuple[slice, slice, slice]]:
    """Return the box of a patch with the case in its middle, and where in the patch the case lies."""
    lower = [(side - size) // 2 for side, size in zip(case.shape, patch_size, strict=True)]
    upper = [low + size for low, size in zip(lower, patch_size, strict=True)]
    z, y, x = (slice(-low, side - low) for low, side in zip(lower, case.shape, strict=True))
    return (lower[0], lower[1], lower[2]), (upper[0], upper[1], upper[2]), (z, y, x)
