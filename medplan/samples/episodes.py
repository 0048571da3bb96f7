"""Samplers for few-shot learning on slices: an example and a query that show the same thing, and two views of
a picture.

An episode has ``support_image``, ``support_label``, ``query_image`` and ``query_label``, each with the box
that its ``..._transform`` needs; labels are 1 inside, 0 outside, -1 where nobody knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medplan.data.labels import IGNORE
from medplan.errors import MethodError
from medplan.samples.augment import Augmentation
from medplan.samples.cases import Case, CaseStore
from medplan.samples.sampling import cut
from medplan.samples.slices import allowed_slices, part_of, slices_of_parts, slices_with
from medplan.samples.spatial import Spatial

__all__ = ["LabelledEpisodes", "MixedEpisodes", "Slices", "SuperpixelEpisodes", "gamma_of_views"]

Voxel = tuple[int, int, int]
Element = dict[str, Any]

VIEWS = Spatial(
    rotation_probability=1.0,
    degrees=5.0,
    shear_degrees=5.0,
    scaling_probability=1.0,
    # A region of this size fills the patch: zooming in by 1.2 shows 1 / 1.2 of it.
    scale=(1 / 1.2, 1 / 0.9),
    in_plane=True,
    elastic_probability=1.0,
    elastic_voxels=2.0,
)
"""Transforms of the views of an episode, those of the released code."""

SHIFT = 5
"""Greatest shift of a view, in pixels."""

GAMMA = (0.5, 1.5)

SMALLEST_REGION = 64
"""Pixels of a superpixel below which it says little at the resolution of the features (8 x 8)."""


@dataclass(frozen=True)
class Slices:
    """Which slices may be learnt from.

    Attributes:
        roles: of the cases.
        without: codes that no slice may show, per dataset; a case without a label is left out where there are
            such codes, since nobody knows what it shows.
    """

    roles: tuple[str, ...]
    without: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def cases(self, store: CaseStore) -> list[str]:
        """Return the keys of the cases that may be used."""
        keys = [key for role in self.roles for key in store.role(role)]
        return [key for key in keys if not self._codes(key) or store[key].codes is not None]

    def of(self, case: Case) -> npt.NDArray[np.intp]:
        """Return the z of the slices of a case that may be used."""
        return allowed_slices(case, without=self._codes(case.key))

    def _codes(self, key: str) -> tuple[int, ...]:
        return self.without.get(key.split("/", 1)[0], ())


@dataclass(frozen=True)
class SuperpixelEpisodes:
    """A superpixel of a slice as if it were an organ, seen twice through two independent transforms.

    Attributes:
        patch_size: (1, y, x).
        slices: those that are drawn from.
        spatial: the transforms.
        shift: greatest shift of a view, in pixels.
    """

    patch_size: Voxel
    slices: Slices
    spatial: Spatial = VIEWS
    shift: int = SHIFT

    def __call__(self, store: CaseStore, rng: np.random.Generator) -> Element:
        keys = self.slices.cases(store)
        for index in rng.permutation(len(keys)):
            case = store[keys[int(index)]]
            for z in rng.permutation(self.slices.of(case)):
                element = self._of_slice(case, int(z), rng)
                if element is not None:
                    return element
        raise MethodError(
            f"There is no slice with a superpixel of {SMALLEST_REGION} pixels or more to learn from"
            + (
                ": every slice shows a class that is kept out of training, or has no label to tell"
                if any(self.slices.without.values())
                else ""
            )
            + f" (roles {', '.join(self.slices.roles)}); look at 'novel' and 'folds' in the plan."
        )

    def _of_slice(self, case: Case, z: int, rng: np.random.Generator) -> Element | None:
        plane = case.volume("superpixels", (z, 0, 0), (z + 1, *case.shape[1:]))[0]
        sizes = np.bincount(np.asarray(plane, dtype=np.int64).ravel())
        ids = [number for number in range(1, len(sizes)) if sizes[number] >= SMALLEST_REGION]
        if not ids:
            return None
        region = np.asarray(plane) == ids[int(rng.integers(len(ids)))]
        element: Element = {"case": case.key}
        for view in ("support", "query"):
            lower = _around(region, z, case, self.patch_size, rng, self.shift)
            element |= _view(view, case, lower, self.patch_size, self.spatial, rng)
            transform = element[f"{view}_transform"]
            box = self.patch_size if transform is None else transform.box
            first = [
                low - (wide - side) // 2 for low, wide, side in zip(lower, box, self.patch_size, strict=True)
            ]
            element[f"{view}_label"] = _cut_plane(region, first[1:], box[1:])[None]
        return element


@dataclass(frozen=True)
class LabelledEpisodes:
    """A labelled organ of one case as example for the same organ in another.

    The example is the slice, among the parts of the organ, at the query's relative position.

    Attributes:
        codes: per dataset those that are learnt.

    Differs: any other case can be the example, and is transformed too, where the original takes three fixed
        slices of one case as they are; a query always shows the organ.
    """

    patch_size: Voxel
    slices: Slices
    codes: dict[str, tuple[int, ...]]
    spatial: Spatial = VIEWS
    shift: int = SHIFT

    def __call__(self, store: CaseStore, rng: np.random.Generator) -> Element:
        found = self.draw(store, rng)
        if found is None:
            raise MethodError(
                "There is no labelled slice of a class to learn; look at 'novel' and 'folds' in the plan."
            )
        return found

    def draw(self, store: CaseStore, rng: np.random.Generator) -> Element | None:
        """Return an element, or None if no case shows a class to learn in a slice that may be used."""
        keys = [key for key in self.slices.cases(store) if store[key].codes is not None]
        for index in rng.permutation(len(keys)):
            case = store[keys[int(index)]]
            usable = self._usable(case)
            if not usable:
                continue
            code = usable[int(rng.integers(len(usable)))]
            query = self._shown(case, code)
            others = [store[key] for key in keys if key.startswith(f"{case.dataset}/") and key != case.key]
            others = [other for other in others if len(self._shown(other, code))] or [case]
            support = others[int(rng.integers(len(others)))]
            z = int(query[int(rng.integers(len(query)))])
            part = part_of(z, int(query[0]), int(query[-1]))
            best = slices_of_parts(self._shown(support, code))[part]
            element: Element = {"case": f"{support.key} {case.key}"}
            element |= self._view("support", support, best, code, rng)
            return element | self._view("query", case, z, code, rng)
        return None

    def _usable(self, case: Case) -> list[int]:
        return [code for code in self.codes.get(case.dataset, ()) if len(self._shown(case, code))]

    def _shown(self, case: Case, code: int) -> npt.NDArray[np.intp]:
        return np.intersect1d(slices_with(case, code), self.slices.of(case))

    def _view(self, view: str, case: Case, z: int, code: int, rng: np.random.Generator) -> Element:
        plane = case.label((z, 0, 0), (z + 1, *case.shape[1:]))[0]
        lower = _around(plane == code, z, case, self.patch_size, rng, self.shift)
        element = _view(view, case, lower, self.patch_size, self.spatial, rng, with_label=True)
        codes = element[f"{view}_label"]
        element[f"{view}_label"] = np.where(codes == IGNORE, IGNORE, codes == code).astype(np.int16)
        return element


@dataclass(frozen=True)
class MixedEpisodes:
    """Labelled episodes with their share, superpixels else; superpixels alone where no label is usable."""

    labelled: LabelledEpisodes
    superpixels: SuperpixelEpisodes
    share: float

    def __call__(self, store: CaseStore, rng: np.random.Generator) -> Element:
        if rng.random() < self.share:
            element = self.labelled.draw(store, rng)
            if element is not None:
                return element
        return self.superpixels(store, rng)


def gamma_of_views(patch_size: Voxel) -> Augmentation:
    """Return the transform of the intensities of views: nothing but a gamma, always."""
    never = (0.0, 1.0, 1.0)
    return Augmentation(
        patch_size=patch_size,
        mirror_axes=(),
        noise=never,
        blurring=never,
        brightness=never,
        contrast=never,
        coarseness=never,
        inverted_gamma=never,
        gamma=(1.0, *GAMMA),
    )


def _around(
    mask: npt.NDArray[np.bool_], z: int, case: Case, patch_size: Voxel, rng: np.random.Generator, shift: int
) -> Voxel:
    """Return the corner of a patch near a mask (Y, X), moved by up to `shift` pixels.

    A slice that fits the patch is centred in it; else the patch is centred on a pixel of the mask as far as
    the border lets it.
    """
    moved = rng.integers(-shift, shift + 1, 2)
    pixels = np.argwhere(mask)
    centre = pixels[int(rng.integers(len(pixels)))] if len(pixels) else np.array(mask.shape) // 2
    corner = []
    for axis in range(2):
        length, side = case.shape[axis + 1], patch_size[axis + 1]
        spare = length - side
        low = spare // 2 if spare <= 0 else int(np.clip(int(centre[axis]) - side // 2, 0, spare))
        corner.append(low + int(moved[axis]))
    return z, corner[0], corner[1]


def _view(
    view: str,
    case: Case,
    lower: Voxel,
    patch_size: Voxel,
    spatial: Spatial,
    rng: np.random.Generator,
    *,
    with_label: bool = False,
) -> Element:
    transform = spatial.draw(rng, patch_size)
    element = cut(case, lower, patch_size, transform=transform, with_label=with_label)
    return {f"{view}_{key}": value for key, value in element.items() if key != "case"}


def _cut_plane(
    mask: npt.NDArray[np.bool_], first: Sequence[int], shape: Sequence[int]
) -> npt.NDArray[np.int16]:
    """Return a box of a mask (Y, X) as 0 and 1; 0 outside."""
    whole = Case(key="/", pixels=mask[None, None], codes=mask[None].astype(np.int16))
    upper = (1, first[0] + shape[0], first[1] + shape[1])
    plane: npt.NDArray[np.int16] = whole.label((0, first[0], first[1]), upper)[0]
    return plane
