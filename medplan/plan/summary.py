"""What the planner reads off fingerprints, over one dataset or several.

Axes are z, y, x of the canonical orientation here, while fingerprints hold them as they are stored; oblique
slices stay as they are stored (`Grid.keeps_oblique`).
"""

from collections.abc import Sequence
from dataclasses import replace
from math import log
from statistics import median
from typing import Literal, TypeVar

from medplan.data.geometry import slice_axis
from medplan.data.labels import LabelSpace
from medplan.plan.facts import CaseFacts
from medplan.plan.fingerprint import Fingerprint
from medplan.plan.folds import Entry
from medplan.plan.grids import diameter_mm
from medplan.plan.schema import Grid

__all__ = [
    "as_stored", "class_diameters_mm", "entries", "foreground", "grid_shapes", "has_masked_background",
    "is_picture", "median_extent_mm", "median_shape", "median_spacing_mm", "novel_classes", "slice_axes",
]  # fmt: skip

Voxels = tuple[int, int, int]
Triple = tuple[float, float, float]
Number = TypeVar("Number", int, float)

MASKED_SHARE = 0.75
"""A box of non-zero intensities smaller than this share of the image tells of a mask, as in nnU-Net."""

INCOMPLETE = 1000.0


def is_picture(facts: Sequence[Fingerprint]) -> bool:
    """Return whether the cases are 2-D pictures."""
    return all(each.is_picture for each in facts)


def median_spacing_mm(facts: Sequence[Fingerprint]) -> Triple | None:
    """Return the median spacing per axis, or None if some case has none."""
    known = [_spacing(case) for case in _cases(facts)]
    values = [spacing for spacing in known if spacing is not None]
    if not values or len(values) < len(known):
        return None
    return median(s[0] for s in values), median(s[1] for s in values), median(s[2] for s in values)


def median_extent_mm(facts: Sequence[Fingerprint], crop: Literal["nonzero", "body", "none"]) -> Triple | None:
    """Return the median size in mm per axis of the cropped images, or None without spacing."""
    extents = []
    for case in _cases(facts):
        spacing = _spacing(case)
        if spacing is None:
            return None
        extents.append([side * step for side, step in zip(_cropped(case, crop), spacing, strict=True)])
    return median(e[0] for e in extents), median(e[1] for e in extents), median(e[2] for e in extents)


def class_diameters_mm(facts: Sequence[Fingerprint]) -> dict[str, float]:
    """Return per class the median over cases of the diameter of a ball of the class' volume."""
    volumes: dict[str, list[float]] = {}
    for case in _cases(facts):
        if case.spacing_mm is not None:
            voxel = case.spacing_mm[0] * case.spacing_mm[1] * case.spacing_mm[2]
            for name, found in case.classes.items():
                if found.voxels > 0:
                    volumes.setdefault(name, []).append(found.voxels * voxel)
    return {name: diameter_mm(median(values)) for name, values in volumes.items()}


def grid_shapes(facts: Sequence[Fingerprint], grid: Grid) -> list[Voxels]:
    """Return the shape that each case will have on the grid; that of the case all are aligned to, if any."""
    shapes = []
    cases = _cases(facts if grid.orientation is not None else as_stored(facts))
    if grid.align_to is not None:
        cases = [case for case in cases if case.id == grid.align_to][:1] * len(cases)
    for case in cases:
        spacing = _spacing(case)
        own = _cropped(case, grid.crop)
        z, y, x = (fixed or side for fixed, side in zip(grid.shape or (0, 0, 0), own, strict=True))
        sides = z, y, x
        if grid.spacing_mm is not None and spacing is not None:
            ratios = [old / new for old, new in zip(spacing, grid.spacing_mm, strict=True)]
            scaled = [max(1, round(side * ratio)) for side, ratio in zip(sides, ratios, strict=True)]
            sides = (scaled[0], scaled[1], scaled[2])
        shapes.append(sides)
    return shapes


def slice_axes(facts: Sequence[Fingerprint]) -> list[Literal["z", "y", "x"] | None]:
    """Return per case the axis of the grid along which thick slices are stacked (`slice_axis`)."""
    axes: list[Literal["z", "y", "x"] | None] = []
    for case in _cases(facts):
        spacing = _spacing(case)
        axis = None if spacing is None else slice_axis(spacing)
        names: tuple[Literal["z", "y", "x"], ...] = ("z", "y", "x")
        axes.append(None if axis is None else names[axis])
    return axes


def as_stored(facts: Sequence[Fingerprint]) -> list[Fingerprint]:
    """Return the facts as if the stored axes were the canonical ones, for a grid that keeps them."""
    return [
        replace(each, cases=tuple(replace(case, orientation="RAS") for case in each.cases)) for each in facts
    ]


def median_shape(shapes: Sequence[Voxels]) -> Voxels:
    """Return the median per axis, rounded."""
    z, y, x = (round(median(shape[axis] for shape in shapes)) for axis in range(3))
    return z, y, x


def foreground(facts: Fingerprint, channel: int) -> dict[str, float] | None:
    """Return mean, std and the 0.5 and 99.5 percentiles inside the classes, or None without labels."""
    if facts.intensity_region != "foreground":
        return None
    found = facts.intensities[channel]
    return {"mean": found.mean, "std": found.std, "p00_5": found.p00_5, "p99_5": found.p99_5}


def has_masked_background(facts: Fingerprint) -> bool:
    """Return whether most images are exactly 0 outside a mask (a skull-stripped brain)."""
    masked = [_volume(_cropped(case, "nonzero")) < MASKED_SHARE * _volume(case.shape) for case in facts.cases]
    return sum(masked) > len(masked) / 2


def novel_classes(facts: Sequence[Fingerprint]) -> tuple[str, ...]:
    """Return the classes that are declared and appear in no labelled case."""
    missing: list[str] = []
    for each in facts:
        seen = {name for case in each.cases for name, found in case.classes.items() if found.voxels > 0}
        if each.num_labelled:
            missing += [name for name in each.labels.names if name not in seen]
    return tuple(missing)


def entries(facts: Fingerprint, labels: LabelSpace, *, domain: str | None = None) -> tuple[Entry, ...]:
    """Return what the split has to know of each case.

    Args:
        labels: what is to be learned, which may be groups of the classes.
        domain: stands in for the domain of cases that have none.
    """
    sizes = [_log_size(case) for case in facts.cases]
    middle = [median(size[axis] for size in sizes) for axis in range(3)] if sizes else [0.0] * 3
    shown = [_num_shown(case, facts.labels, labels) for case in facts.cases]
    most = max(shown, default=0)
    result = []
    for case, size, number in zip(facts.cases, sizes, shown, strict=True):
        # An atlas should show every class; among those that do, the most usual one is taken.
        lacking = most - number
        distance = sum(abs(a - b) for a, b in zip(size, middle, strict=True))
        result.append(
            Entry(
                id=case.id,
                is_labelled=case.is_labelled,
                domain=case.domain or domain,
                patient=case.patient,
                typicality=distance + INCOMPLETE * lacking,
                lacking=lacking,
                likeness=facts.likeness.get(case.id),
            )
        )
    return tuple(result)


def _num_shown(case: CaseFacts, classes: LabelSpace, labels: LabelSpace) -> int:
    """Return how many of `labels`, which may be groups of the classes, a case shows."""
    if labels == classes:
        return len(case.classes)
    named = zip(classes.names, classes.values, strict=True)
    values = {value for name, own in named if name in case.classes for value in own}
    return sum(not values.isdisjoint(own) for own in labels.values)


def _log_size(case: CaseFacts) -> list[float]:
    steps = _spacing(case) or (1.0, 1.0, 1.0)
    return [log(max(1, side) * step) for side, step in zip(_cropped(case, "nonzero"), steps, strict=True)]


def _spacing(case: CaseFacts) -> Triple | None:
    return None if case.spacing_mm is None else _canonical(case, case.spacing_mm)


def _cropped(case: CaseFacts, crop: Literal["nonzero", "body", "none"]) -> Voxels:
    if crop == "none":
        return _canonical(case, case.shape)
    lower, upper = case.body_box if crop == "body" else case.nonzero_box
    return _canonical(case, (upper[0] - lower[0], upper[1] - lower[1], upper[2] - lower[2]))


def _canonical(case: CaseFacts, values: tuple[Number, Number, Number]) -> tuple[Number, Number, Number]:
    """Reorder values of the stored axes z, y, x to those of the canonical orientation."""
    if case.spacing_mm is None or case.is_oblique:
        return values
    # Letters name x, y, z; the values come in the order z, y, x.
    along = [
        next(i for i, letter in enumerate(case.orientation) if letter in pair) for pair in ("SI", "AP", "RL")
    ]
    return values[2 - along[0]], values[2 - along[1]], values[2 - along[2]]


def _volume(shape: Voxels) -> int:
    return shape[0] * shape[1] * shape[2]


def _cases(facts: Sequence[Fingerprint]) -> list[CaseFacts]:
    return [case for each in facts for case in each.cases]
