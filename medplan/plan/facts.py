"""The facts of one case, measured while it is in memory."""

from dataclasses import dataclass, field, replace

import numpy as np

from medplan.data.boxes import Box, around, body_box, body_threshold, nonzero_box, value_boxes
from medplan.data.checks import Loaded
from medplan.data.labels import LabelSpace
from medplan.data.rawcase import RawCase
from medplan.plan.likeness import Thumbnail, thumbnail
from medplan.plan.statistics import Histogram, Intensity, summarise

__all__ = ["CaseFacts", "ClassFacts", "Measured", "measure"]


@dataclass(frozen=True, kw_only=True)
class ClassFacts:
    """One class in one case.

    Attributes:
        voxels: that belong to it.
        size_voxels: of its bounding box (z, y, x).
        size_mm: the same in mm; None without spacing.
    """

    voxels: int
    size_voxels: tuple[int, int, int]
    size_mm: tuple[float, float, float] | None


@dataclass(frozen=True, kw_only=True)
class CaseFacts:
    """One case.

    Attributes:
        id: of the case.
        shape: voxels (z, y, x).
        spacing_mm: (z, y, x); None for pictures.
        orientation: letters of increasing x, y, z (``RAS``); of oblique axes the nearest.
        nonzero: per channel the statistics of the voxels that are not 0.
        foreground: per channel the statistics inside all classes together; None without a class.
        nonzero_box: voxels that are not 0 in some channel: first voxel and first voxel behind (z, y, x).
        body_box: the same of the body, without air; estimated from whole planes, while
            `medplan.preprocess.crop` finds its connected parts.
        classes: classes that are present, by name.
        is_labelled: whether there is a label file.
        unannotated: share of the voxels that carry the ignore value.
        domain, patient: as the dataset says.
        digest: of the files (see `medplan.plan.cache`).
        is_oblique: whether it is a stack of oblique thick slices (`Geometry.is_oblique`).
    """

    id: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    orientation: str
    nonzero: tuple[Intensity, ...]
    foreground: tuple[Intensity, ...] | None
    nonzero_box: Box
    body_box: Box
    classes: dict[str, ClassFacts] = field(default_factory=dict)
    is_labelled: bool = False
    unannotated: float = 0.0
    domain: str | None = None
    patient: str | None = None
    digest: str = ""
    is_oblique: bool = False


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is measured of a case.

    Attributes:
        facts: what the fingerprint says of it.
        nonzero: per channel the intensities that are not 0, to be pooled over the cases.
        foreground: per channel the intensities inside the classes; None without a class.
        notes: warnings, one sentence each.
        thumbnail: a small picture of it, to compare cases by (see `medplan.plan.likeness`).
    """

    facts: CaseFacts
    nonzero: tuple[Histogram, ...]
    foreground: tuple[Histogram, ...] | None
    notes: tuple[str, ...] = ()
    thumbnail: Thumbnail | None = None

    def with_identity(self, case: RawCase, digest: str) -> "Measured":
        """Return the same with what does not depend on the voxels."""
        facts = replace(self.facts, domain=case.domain, patient=case.patient, digest=digest)
        return replace(self, facts=facts)


def measure(case: RawCase, loaded: Loaded, labels: LabelSpace) -> Measured:
    """Measure a case; the label should hold declared values only."""
    array, geometry = loaded.array, loaded.geometry
    nonzero = tuple(summarise(channel, without_zeros=True) or _nothing() for channel in array)
    thresholds = tuple(_threshold(part, channel.size) for part, channel in zip(nonzero, array, strict=True))
    foreground = _foreground(loaded, labels)
    ignored = 0 if labels.ignore is None else loaded.counts.get(labels.ignore, 0)
    facts = CaseFacts(
        id=case.id,
        shape=geometry.shape,
        spacing_mm=geometry.spacing_mm,
        orientation=geometry.orientation,
        nonzero=tuple(part.intensity() for part in nonzero),
        foreground=None if foreground is None else tuple(part.intensity() for part in foreground),
        nonzero_box=nonzero_box(*array) or ((0, 0, 0), geometry.shape),
        body_box=body_box(array, thresholds),
        classes=_classes(loaded, labels),
        is_labelled=loaded.label is not None,
        unannotated=ignored / float(np.prod(geometry.shape)),
        domain=case.domain,
        patient=case.patient,
        is_oblique=geometry.is_oblique,
    )
    small = thumbnail(array[0], geometry, threshold=thresholds[0], highest=facts.nonzero[0].p99_5)
    return Measured(facts=facts, nonzero=nonzero, foreground=foreground, thumbnail=small)


def _nothing() -> Histogram:
    return Histogram(np.zeros(1), np.ones(1), 0.0, 0.0)


def _threshold(nonzero: Histogram, size: int) -> float:
    """Return the threshold between air and body of a channel; zeros are air that was set to 0."""
    zeros = size - nonzero.total
    if zeros < 0.5:
        return body_threshold(nonzero.values, nonzero.counts)
    where = int(np.searchsorted(nonzero.values, 0.0))
    return body_threshold(np.insert(nonzero.values, where, 0.0), np.insert(nonzero.counts, where, zeros))


def _foreground(loaded: Loaded, labels: LabelSpace) -> tuple[Histogram, ...] | None:
    if loaded.label is None:
        return None
    declared = {value for values in labels.values for value in values} - {0}
    if not declared & set(loaded.counts):
        return None
    strange = set(loaded.counts) - declared - {0}
    mask = loaded.label != 0
    if strange:
        mask &= ~np.isin(loaded.label, list(strange))
    found = [summarise(channel[mask]) for channel in loaded.array]
    return tuple(part for part in found if part is not None)


def _classes(loaded: Loaded, labels: LabelSpace) -> dict[str, ClassFacts]:
    if loaded.label is None:
        return {}
    boxes = value_boxes(loaded.label)
    spacing = loaded.geometry.spacing_mm
    result: dict[str, ClassFacts] = {}
    for name, values in zip(labels.names, labels.values, strict=True):
        own = [value for value in values if value in boxes]
        if not own:
            continue
        (z0, y0, x0), (z1, y1, x1) = around([boxes[value] for value in own])
        size = (z1 - z0, y1 - y0, x1 - x0)
        result[name] = ClassFacts(
            voxels=sum(loaded.counts[value] for value in own),
            size_voxels=size,
            size_mm=None
            if spacing is None
            else (size[0] * spacing[0], size[1] * spacing[1], size[2] * spacing[2]),
        )
    return result
