"""The fingerprint of a dataset: facts about every training case, and what follows from all of them together.

Every case is read once; it is checked and measured while it is in memory. torch is not needed.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from medplan.data.checks import Finding, inspect, stray_findings
from medplan.data.dataset import Dataset
from medplan.data.labels import LabelSpace
from medplan.data.rawcase import RawCase
from medplan.errors import DataError
from medplan.machine import cores
from medplan.plan.cache import Cache
from medplan.plan.facts import CaseFacts, Measured, measure
from medplan.plan.likeness import likeness
from medplan.plan.modality import Source, mismatch, modalities
from medplan.plan.schema import Modality
from medplan.plan.statistics import Intensity, merge
from medplan.progress import track

__all__ = ["Fingerprint", "extract"]

MAX_SHOWN = 10
ODD_SPACING = 3.0


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Facts about a dataset; no decisions.

    Attributes:
        name: of the dataset.
        channels: names, in order.
        modalities: per channel.
        modalities_from: per channel how the modality is known.
        labels: classes and raw values.
        file_ending: of the image files.
        is_picture: whether the images are 2-D pictures without spacing.
        intensity_region: where `intensities` were measured: in the foreground of the labelled cases, or, if
            no case has any, in all voxels that are not 0.
        intensities: per channel, pooled over the cases, each with the same weight.
        median_spacing_mm: median (z, y, x) over the cases, as stored; None for pictures.
        median_shape: median voxels (z, y, x).
        domains: names that occur, sorted.
        notes: what is worth knowing, one sentence each.
        cases: training cases, sorted by id.
        splits: published splits by name, each a map from role to ids.
        likeness: by case, how much it looks like all the others (see `medplan.plan.likeness`), where that
            can be said.
    """

    name: str
    channels: tuple[str, ...]
    modalities: tuple[Modality, ...]
    modalities_from: tuple[Source, ...]
    labels: LabelSpace
    file_ending: str
    is_picture: bool
    intensity_region: Literal["foreground", "nonzero"]
    intensities: tuple[Intensity, ...]
    median_spacing_mm: tuple[float, float, float] | None
    median_shape: tuple[int, int, int]
    domains: tuple[str, ...]
    notes: tuple[str, ...]
    cases: tuple[CaseFacts, ...]
    splits: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    likeness: dict[str, float] = field(default_factory=dict)

    @property
    def num_labelled(self) -> int:
        return sum(case.is_labelled for case in self.cases)

    @property
    def num_unlabelled(self) -> int:
        return len(self.cases) - self.num_labelled


def extract(dataset: Dataset, *, cache: Path, workers: int | None = None) -> Fingerprint:
    """Read, check and measure the training cases of a dataset.

    Args:
        cache: file that remembers what was measured; unchanged cases are not read again.
        workers: threads, and the largest number of cases in memory at once; None takes the number of cores.

    Raises: DataError that lists the cases that cannot be used, after all have been read.
    """
    memory = Cache(cache, channels=dataset.channels, labels=dataset.labels)
    known = {case.id: memory.get(case) for case in dataset.cases}
    new = [case for case in dataset.cases if known[case.id] is None]
    findings: list[Finding] = []

    def examine(case: RawCase) -> tuple[str, Measured | None, tuple[Finding, ...]]:
        loaded, found = inspect(case, dataset)
        if loaded is None:
            return case.id, None, found
        measured = measure(case, loaded, dataset.labels)
        measured = replace(measured, notes=tuple(finding.sentence for finding in found))
        return case.id, memory.put(case, measured), found

    if new:
        with ThreadPoolExecutor(workers or cores()) as pool:
            for case_id, measured, found in track(
                pool.map(examine, new), label=f"fingerprint {dataset.name}", total=len(new)
            ):
                known[case_id] = measured
                findings.extend(found)
    errors = [finding for finding in findings if finding.is_error]
    if errors:
        raise _refusal(dataset, errors)
    memory.tidy(case.id for case in dataset.cases)
    measured_cases = [case for name in sorted(known) if (case := known[name]) is not None]
    return _sum_up(dataset, measured_cases)


def _refusal(dataset: Dataset, errors: Sequence[Finding]) -> DataError:
    shown = "\n".join(f"  {finding.sentence}" for finding in errors[:MAX_SHOWN])
    if len(errors) > MAX_SHOWN:
        shown += f"\n  and {len(errors) - MAX_SHOWN} more"
    repairable = sum(finding.can_repair for finding in errors)
    advice = "Correct these files, or list the cases under 'exclude' in dataset.json"
    if repairable:
        advice += (
            f"; 'medplan fingerprint -d {dataset.name} --repair FOLDER' writes a copy that puts {repairable} "
            "of them right"
        )
    count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
    return DataError(f"{dataset.folder}: {count} in the raw data:\n{shown}\n{advice}.")


def _sum_up(dataset: Dataset, cases: Sequence[Measured]) -> Fingerprint:
    facts = [case.facts for case in cases]
    alike = likeness([case.thumbnail for case in cases])
    with_classes = [case.foreground for case in cases if case.foreground is not None]
    pooled = with_classes or [case.nonzero for case in cases]
    channels = range(len(dataset.channels))
    per_case = [[case.nonzero[channel] for case in facts] for channel in channels]
    kinds, sources = modalities(dataset.channels, is_pictures=dataset.is_pictures, intensities=per_case)
    notes = [finding.sentence for finding in stray_findings(dataset)]
    notes += [note for case in cases for note in case.notes]
    notes += _odd_spacings(facts)
    for name, kind, source, own in zip(dataset.channels, kinds, sources, per_case, strict=True):
        if source == "intensities (a guess)":
            notes.append(
                f"channel '{name}': taken for {kind}, guessed from the intensities; write what it is (\"T1\" "
                "or \"CT\") under 'channel_names' in dataset.json to be sure."
            )
        wrong = mismatch(kind, own)
        if wrong is not None:
            notes.append(f"channel '{name}': {wrong}")
    spacings = [case.spacing_mm for case in facts if case.spacing_mm is not None]
    z, y, x = (round(float(value)) for value in np.median([case.shape for case in facts], axis=0))
    return Fingerprint(
        name=dataset.name,
        channels=dataset.channels,
        modalities=kinds,
        modalities_from=sources,
        labels=dataset.labels,
        file_ending=dataset.file_ending,
        is_picture=dataset.is_pictures,
        intensity_region="foreground" if with_classes else "nonzero",
        intensities=tuple(merge([case[channel] for case in pooled]).intensity() for channel in channels),
        median_spacing_mm=_median(spacings) if spacings else None,
        median_shape=(z, y, x),
        domains=tuple(sorted({case.domain for case in facts if case.domain is not None})),
        notes=tuple(notes),
        cases=tuple(facts),
        splits={name: dict(roles) for name, roles in dataset.splits.items()},
        likeness={case.id: one for case, one in zip(facts, alike, strict=True) if one is not None},
    )


def _odd_spacings(cases: Sequence[CaseFacts]) -> list[str]:
    """Name cases whose smallest spacing is far from that of most, as it is where a header holds none."""
    finest = {case.id: min(case.spacing_mm) for case in cases if case.spacing_mm is not None}
    usual = float(np.median(list(finest.values()))) if finest else 1.0
    odd = [name for name, each in finest.items() if max(each / usual, usual / each) > ODD_SPACING]
    if not odd:
        return []
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    return [
        f"voxels of {', '.join(odd[:3])}{more} are {finest[odd[0]]:.3g} mm wide, those of most cases "
        f"{usual:.3g} mm. A file that was saved without its spacing counts as 1 mm; if that is so, mend it."
    ]


def _median(values: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    z, y, x = (float(value) for value in np.median(values, axis=0))
    return z, y, x
