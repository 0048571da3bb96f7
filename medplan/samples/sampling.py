"""Samplers: pure functions from (cases, random generator) to one training element, as picklable dataclasses.

An element holds ``image`` (C, Z, Y, X) float32, ``label`` (Z, Y, X) int16 codes and ``case``, the key it was
cut from. Where a sampler draws a spatial transform, ``transform`` is a `Transform` (else None) and the arrays
have the shape of its box; `medplan.samples.augment.Augmentation` then brings them to the patch size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medplan.errors import MethodError
from medplan.samples.cases import Case, CaseStore
from medplan.samples.spatial import Spatial, Transform

__all__ = [
    "DrawsHistogram",
    "Labelled",
    "LabelledAndUnlabelled",
    "Mixture",
    "Unlabelled",
    "choose_case",
    "cut",
    "foreground_patch",
    "random_patch",
]

Voxel = tuple[int, int, int]
Element = dict[str, Any]
Sampler = Callable[[CaseStore, np.random.Generator], Element]


@dataclass(frozen=True)
class Labelled:
    """Patches of labelled cases.

    Attributes:
        patch_size: voxels (z, y, x).
        oversample: probability that the patch is centred on a voxel of a random foreground class.
        role: role of the cases in the fold.
        dataset: draw from this dataset of the plan only.
        spatial: transforms to draw; needs an `Augmentation` in the phase.
    """

    patch_size: Voxel
    oversample: float = 1 / 3
    role: str = "labelled"
    dataset: str | None = None
    spatial: Spatial | None = None

    def __call__(self, store: CaseStore, rng: np.random.Generator) -> Element:
        case = choose_case(store, self.role, rng, dataset=self.dataset)
        if rng.random() < self.oversample:
            lower = foreground_patch(case, self.patch_size, rng)
        else:
            lower = random_patch(case, self.patch_size, rng)
        transform = self.spatial.draw(rng, self.patch_size) if self.spatial else None
        return cut(case, lower, self.patch_size, transform=transform)


@dataclass(frozen=True)
class Unlabelled:
    """Patches of images whose labels, if there are any, are not looked at: an element without ``label``."""

    patch_size: Voxel
    role: str = "unlabelled"
    dataset: str | None = None
    spatial: Spatial | None = None

    def __call__(self, store: CaseStore, rng: np.random.Generator) -> Element:
        case = choose_case(store, self.role, rng, dataset=self.dataset)
        lower = random_patch(case, self.patch_size, rng)
        transform = self.spatial.draw(rng, self.patch_size) if self.spatial else None
        return cut(case, lower, self.patch_size, transform=transform, with_label=False)


@dataclass(frozen=True)
class LabelledAndUnlabelled:
    """A labelled patch and an unlabelled one: ``image``, ``label`` and ``unlabelled_image``.

    ``case`` holds both keys joined by a space; the second transform is ``unlabelled_transform``.
    """

    patch_size: Voxel
    oversample: float = 1 / 3
    labelled_role: str = "labelled"
    unlabelled_role: str = "unlabelled"
    spatial: Spatial | None = None

    def __call__(self, store: CaseStore, rng: np.random.Generator) -> Element:
        labelled = Labelled(self.patch_size, self.oversample, self.labelled_role, spatial=self.spatial)(
            store, rng
        )
        unlabelled = Unlabelled(self.patch_size, self.unlabelled_role, spatial=self.spatial)(store, rng)
        return {
            **labelled,
            "unlabelled_image": unlabelled["image"],
            "unlabelled_transform": unlabelled["transform"],
            "case": f"{labelled['case']} {unlabelled['case']}",
        }


@dataclass(frozen=True)
class DrawsHistogram:
    """A sampler that adds ``histogram`` (C, 33), that of a random unlabelled case."""

    sampler: Sampler

    def __call__(self, store: CaseStore, rng: np.random.Generator) -> Element:
        element = self.sampler(store, rng)
        return {**element, "histogram": choose_case(store, "unlabelled", rng).histogram}


@dataclass(frozen=True)
class Mixture:
    """Elements of several samplers, each drawn with its share; ``source`` (int64) is the sampler's number.

    The samplers must give elements of equal keys and shapes. For the datasets of a plan, in order:
    ``Mixture(tuple(Labelled(size, dataset=d.name) for d in plan.datasets), tuple(d.share for d in
    plan.datasets))``.
    """

    samplers: tuple[Sampler, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if (
            len(self.samplers) != len(self.shares)
            or not self.samplers
            or min(self.shares) < 0
            or not sum(self.shares)
        ):
            raise MethodError(f"{len(self.samplers)} samplers need as many shares >= 0, found {self.shares}.")

    def __call__(self, store: CaseStore, rng: np.random.Generator) -> Element:
        number = int(rng.choice(len(self.shares), p=np.array(self.shares) / sum(self.shares)))
        return {**self.samplers[number](store, rng), "source": np.int64(number)}


def choose_case(
    store: CaseStore,
    role: str,
    rng: np.random.Generator,
    *,
    dataset: str | None = None,
    accept: Callable[[Case], bool] | None = None,
) -> Case:
    """Return a random case of a role, of one dataset if it is named, that `accept` agrees to.

    Raises: MethodError if there is none.
    """
    keys: Sequence[str] = store.role(role)
    if dataset is not None:
        keys = [key for key in keys if key.startswith(f"{dataset}/")]
    if accept is None and keys:
        return store[keys[int(rng.integers(len(keys)))]]
    for index in rng.permutation(len(keys)):
        case = store[keys[int(index)]]
        if accept is None or accept(case):
            return case
    of = f" of dataset '{dataset}'" if dataset else ""
    raise MethodError(
        f"The fold has no {'suitable ' if keys else ''}case with the role '{role}'{of}, which this method "
        "draws from; look at 'folds' in the plan, or choose another --fold."
    )


def random_patch(case: Case, patch_size: Voxel, rng: np.random.Generator) -> Voxel:
    """Return the lower corner of a patch anywhere in the case; along axes that are too short it is
    centred."""
    z, y, x = (int(rng.integers(low, high + 1)) for low, high in _corners(case, patch_size))
    return z, y, x


def foreground_patch(case: Case, patch_size: Voxel, rng: np.random.Generator) -> Voxel:
    """Return the lower corner of a patch centred on a voxel of a random class, as far as the border lets it.

    The class is drawn uniformly among those present, then the voxel uniformly among `Case.locations`; a case
    without foreground gives a random patch.
    """
    present = [code for code, voxels in sorted(case.locations.items()) if code > 0 and len(voxels)]
    if not present:
        return random_patch(case, patch_size, rng)
    voxels = case.locations[present[int(rng.integers(len(present)))]]
    voxel = voxels[int(rng.integers(len(voxels)))]
    z, y, x = (
        min(max(int(centre) - size // 2, low), high)
        for centre, size, (low, high) in zip(voxel, patch_size, _corners(case, patch_size), strict=True)
    )
    return z, y, x


def cut(
    case: Case,
    lower: Voxel,
    patch_size: Voxel,
    *,
    transform: Transform | None = None,
    with_label: bool = True,
) -> Element:
    """Read the patch, or the box that its transform needs, as an element."""
    box = patch_size if transform is None else transform.box
    first = tuple(
        corner - (wide - size) // 2 for corner, wide, size in zip(lower, box, patch_size, strict=True)
    )
    start: Voxel = (first[0], first[1], first[2])
    stop: Voxel = (first[0] + box[0], first[1] + box[1], first[2] + box[2])
    element: Element = {"image": case.image(start, stop), "transform": transform, "case": case.key}
    if with_label:
        element["label"] = case.label(start, stop)
    return element


def _corners(case: Case, patch_size: Voxel) -> list[tuple[int, int]]:
    bounds = []
    for length, size in zip(case.shape, patch_size, strict=True):
        spare = length - size
        bounds.append((0, spare) if spare >= 0 else (spare // 2, spare // 2))
    return bounds
