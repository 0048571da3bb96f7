"""Makes cases that can be written of scans and labels that belong together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_conversion.loose.arrange import Arranged, Arrangement
from dataset_conversion.loose.classes import Classes, Drawn
from dataset_conversion.loose.grids import coverage, placed, resampled, same_grid
from dataset_conversion.loose.labels import Overlaps, joined, volume_label
from dataset_conversion.loose.masks import Decoder
from dataset_conversion.pictures import is_coloured, read_picture
from dataset_conversion.volumes import Grid, Volume, grid_of, read_volume
from dataset_conversion.writing import Case, LeftOut, Source, in_threads
from medplan.data.pictures import size
from medplan.errors import DataError

__all__ = ["Made", "picture_cases", "volume_cases"]

MOST_CHANNELS = 10
"""Of a 4-D file; more are a film."""
LEAST_COVERAGE = 0.5


@dataclass(frozen=True, kw_only=True)
class Made:
    """Cases to be written.

    Attributes:
        channels: names.
        ending: of the files to be written.
        notes: what was done to scans, or why they are left out.
        overlaps: by case, where masks overlap; filled while labels are read.
    """

    cases: tuple[Case, ...]
    channels: tuple[str, ...]
    ending: str
    notes: tuple[str, ...]
    overlaps: dict[str, Overlaps] = field(default_factory=dict)


def volume_cases(arrangement: Arrangement, classes: Classes, source: Path) -> Made:
    """Make cases of volumes; channels on other grids than the labelled one are resampled onto it.

    Raises: DataError if a header cannot be read, or if scans differ in their number of channels.
    """
    grids = list(in_threads(_grids, arrangement.cases, label="reading headers"))
    frames = _frames(arrangement, grids)
    names = tuple(name for _, name in arrangement.channels)
    if frames:
        names = tuple(f"channel {number}" for number in range(frames))
    drawn_on = [_labelled_channel(case, found) for case, found in zip(arrangement.cases, grids, strict=True)]
    usual = Counter(number for number in drawn_on if number is not None).most_common(1)
    usual_number = usual[0][0] if usual else 0
    overlaps: dict[str, Overlaps] = {}
    cases: list[Case] = []
    moved: list[str] = []
    apart: list[str] = []
    for case, found, drawn in zip(arrangement.cases, grids, drawn_on, strict=True):
        reference = usual_number if drawn is None else drawn
        grid = found[reference]
        others = [number for number, other in enumerate(found) if not same_grid(other, grid)]
        far = [number for number in others if coverage(found[number], grid) < LEAST_COVERAGE]
        if far:
            apart.append(f"{case.id} ({names[far[0]]} and {names[reference]})")
            continue
        if others:
            moved.append(
                f"{case.id} ({', '.join(names[number] for number in others)} onto {names[reference]})"
            )
        images: tuple[Source, ...] = tuple(
            partial(_moved, scan.path, grid) if number in others else _taken(scan.path)
            for number, scan in enumerate(case.scans)
        )
        if frames:
            images = tuple(partial(_frame, case.scans[0].path, number) for number in range(frames))
        files = classes.drawn.get(case.id)
        label = (
            partial(_volume_label, case.id, files, (grid[0][:3], grid[1]), source, overlaps)
            if files
            else None
        )
        cases.append(Case(id=case.id, images=images, label=label, is_open=True))
    notes = []
    if moved:
        notes.append(
            f"{len(moved)} case(s) have channels on other grids; they are resampled: {_some(moved)}."
        )
    if apart:
        notes.append(
            f"{len(apart)} case(s) are left out since their channels do not cover the same region: "
            f"{_some(apart)}."
        )
    if not cases:
        raise DataError(f"{source}: {' '.join(notes)}")
    return Made(cases=tuple(cases), channels=names, ending=".nii.gz", notes=tuple(notes), overlaps=overlaps)


def picture_cases(arrangement: Arrangement, classes: Classes, source: Path, decoder: Decoder | None) -> Made:
    """Make cases of pictures: RGB if any of them has colours, else grey; several channels are grey each.

    Raises: DataError if a picture cannot be read.
    """
    scans = [scan.path for case in arrangement.cases for scan in case.scans]
    names = tuple(name for _, name in arrangement.channels)
    coloured = len(names) == 1 and any(in_threads(is_coloured, scans, label="looking at pictures"))
    overlaps: dict[str, Overlaps] = {}
    cases = []
    for case in arrangement.cases:
        label = None
        if case.labels and decoder is not None:
            label = partial(_picture_label, case, classes.drawn[case.id], decoder, source, overlaps)
        images = tuple(partial(read_picture, scan.path, coloured=coloured) for scan in case.scans)
        cases.append(Case(id=case.id, images=images, label=label, is_open=True))
    if len(names) == 1:
        names = ("R", "G", "B") if coloured else ("grey",)
    return Made(cases=tuple(cases), channels=names, ending=".png", notes=(), overlaps=overlaps)


def _grids(case: Arranged) -> list[Grid]:
    grids = [grid_of(scan.path) for scan in case.scans]
    for (shape, _), scan in zip(grids, case.scans, strict=True):
        if len(shape) > 4 or (len(shape) == 4 and shape[3] > 1 and len(grids) > 1):
            raise DataError(
                f"{scan.path}: has {len(shape)} dimensions, {shape}; expected one volume, since it is one of "
                f"{len(grids)} channels of its case."
            )
    return grids


def _frames(arrangement: Arrangement, grids: Sequence[Sequence[Grid]]) -> int:
    """Return how many channels each file holds, if it is more than one."""
    counts = [shape[3] if len(shape) == 4 else 1 for ((shape, _), *_) in grids]
    most = max(counts)
    paths = [case.scans[0].path for case in arrangement.cases]
    if most == 1:
        return 0
    if most > MOST_CHANNELS or min(counts) < most:
        what = "is a film of" if most > MOST_CHANNELS else "holds"
        raise DataError(
            f"{paths[counts.index(most)]}: {what} {most} volumes, and {paths[counts.index(min(counts))]} "
            f"{min(counts)}; expected one volume per file, or as many channels in all of them. Export the "
            "volumes as files of their own."
        )
    return most


def _labelled_channel(case: Arranged, grids: Sequence[Grid]) -> int | None:
    """Return the channel on whose voxels the label was drawn."""
    if len(grids) == 1 or not case.labels:
        return None
    shape, affine = grid_of(case.labels[0][0].path)
    for number, grid in enumerate(grids):
        try:
            placed((shape[:3], affine), grid)
            return number
        except ValueError:
            continue
    return None


def _volume_label(
    case: str, files: Sequence[Drawn], grid: Grid, source: Path, overlaps: dict[str, Overlaps]
) -> Volume:
    label, overlaps[case] = volume_label(files, grid=grid, source=source)
    return label


def _picture_label(
    case: Arranged, files: Sequence[Drawn], decoder: Decoder, source: Path, overlaps: dict[str, Overlaps]
) -> npt.NDArray[Any]:
    expected = size(case.scans[0].path)
    for drawn in files:
        if (found := size(drawn.path)) != expected:
            raise LeftOut(
                f"{drawn.path.relative_to(source).as_posix()}: has {found[1]} x {found[0]} pixels, its "
                f"picture {expected[1]} x {expected[0]}; the label is left out and the picture is unlabelled."
            )
    label, overlaps[case.id] = joined(files, lambda drawn: [(decoder.read(drawn.path), {})])
    return label.astype(np.uint8 if label.max(initial=0) < 256 else np.uint16)


def _taken(path: Path) -> Source:
    return path if path.name.endswith((".nii", ".nii.gz")) else partial(read_volume, path)


def _moved(path: Path, grid: Grid) -> Volume:
    return resampled(read_volume(path), grid)


def _frame(path: Path, number: int) -> Volume:
    volume = read_volume(path)
    return Volume(voxels=volume.voxels[..., number], affine=volume.affine)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
