"""Makes cases that can be written of volumes that belong together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dataset_conversion.loose.arrange import Arranged, Arrangement
from dataset_conversion.loose.classes import Classes, Drawn
from dataset_conversion.loose.grids import coverage, placed, resampled, same_grid
from dataset_conversion.loose.labels import Overlaps, volume_label
from dataset_conversion.volumes import Grid, Volume, grid_of, read_volume
from dataset_conversion.writing import Case, Source, in_threads
from medplan.errors import DataError

__all__ = ["Made", "volume_cases"]

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

    Raises: DataError if a header cannot be read, or if nothing can be used.
    """
    notes: list[str] = []
    arranged, grids, frames = _alike(arrangement.cases, notes)
    names = tuple(name for _, name in arrangement.channels)
    if frames > 1:
        names = tuple(f"channel {number}" for number in range(frames))
    drawn_on = [_labelled_channel(case, found) for case, found in zip(arranged, grids, strict=True)]
    usual = Counter(number for number in drawn_on if number is not None).most_common(1)
    overlaps: dict[str, Overlaps] = {}
    cases: list[Case] = []
    moved: list[str] = []
    apart: list[str] = []
    for case, found, drawn in zip(arranged, grids, drawn_on, strict=True):
        reference = drawn if drawn is not None else usual[0][0] if usual else 0
        shape, affine = found[reference]
        grid = shape[:3], affine
        others = [number for number, other in enumerate(found) if not same_grid(other, grid)]
        far = [number for number in others if coverage(found[number], grid) < LEAST_COVERAGE]
        if far:
            apart.append(f"{case.id} ({names[far[0]]} and {names[reference]})")
            continue
        if others:
            listed = ", ".join(names[number] for number in others)
            moved.append(f"{case.id} ({listed} onto {names[reference]})")
        paths = [scan.path for scan in case.scans]
        images = [_moved_onto(grid, path) if n in others else _taken(path) for n, path in enumerate(paths)]
        if frames > 1:
            images = [partial(_frame, paths[0], number) for number in range(frames)]
        files = classes.drawn.get(case.id)
        label = partial(_label, case.id, files, grid, source, overlaps) if files else None
        cases.append(Case(id=case.id, images=tuple(images), label=label, is_open=True))
    if moved:
        notes.append(f"{len(moved)} case(s) have channels on other grids, now resampled: {_some(moved)}.")
    if apart:
        what = "are left out since their channels do not cover the same region"
        notes.append(f"{len(apart)} case(s) {what}: {_some(apart)}.")
    if not cases:
        raise DataError(f"{source}: {' '.join(notes)}")
    return Made(cases=tuple(cases), channels=names, ending=".nii.gz", notes=tuple(notes), overlaps=overlaps)


def _alike(cases: Sequence[Arranged], notes: list[str]) -> tuple[list[Arranged], list[list[Grid]], int]:
    """Return the cases whose files hold as many volumes as most do, their grids, and that number."""
    found = [*zip(cases, in_threads(_grids, cases, label="reading headers"), strict=True)]
    counts = [grids[0][0][3] if len(grids[0][0]) == 4 else 1 for _, grids in found]
    usual = Counter(counts).most_common(1)[0][0]
    if usual > MOST_CHANNELS:
        raise DataError(
            f"{cases[counts.index(usual)].scans[0].path}: is a film of {usual} volumes; export those that "
            "are wanted as files of their own."
        )
    odd = [f"{case.id} ({count})" for case, count in zip(cases, counts, strict=True) if count != usual]
    if odd:
        notes.append(f"{len(odd)} file(s) do not hold {usual} volume(s) and are left out: {_some(odd)}.")
    kept = [pair for pair, count in zip(found, counts, strict=True) if count == usual]
    return [case for case, _ in kept], [grids for _, grids in kept], usual


def _grids(case: Arranged) -> list[Grid]:
    grids = [grid_of(scan.path) for scan in case.scans]
    for (shape, _), scan in zip(grids, case.scans, strict=True):
        if len(shape) > 4 or (len(shape) == 4 and shape[3] > 1 and len(grids) > 1):
            raise DataError(
                f"{scan.path}: has {len(shape)} dimensions, {shape}; expected one volume, since it is one of "
                f"{len(grids)} channels of its case."
            )
    return grids


def _labelled_channel(case: Arranged, grids: Sequence[Grid]) -> int | None:
    """Return the channel on whose voxels the label was drawn."""
    if len(grids) == 1 or not case.labels:
        return None
    shape, affine = grid_of(case.labels[0][0].path)
    for number, grid in enumerate(grids):
        if same_grid((shape, affine), grid):
            return number
    for number, grid in enumerate(grids):
        try:
            placed((shape[:3], affine), grid)
            return number
        except ValueError:
            continue
    return None


def _label(
    case: str, files: Sequence[Drawn], grid: Grid, source: Path, overlaps: dict[str, Overlaps]
) -> Volume:
    label, overlaps[case] = volume_label(files, grid=grid, source=source)
    return label


def _taken(path: Path) -> Source:
    return path if path.name.endswith((".nii", ".nii.gz")) else partial(read_volume, path)


def _moved_onto(grid: Grid, path: Path) -> Source:
    return lambda: resampled(read_volume(path), grid)


def _frame(path: Path, number: int) -> Volume:
    volume = read_volume(path)
    return Volume(voxels=volume.voxels[..., number], affine=volume.affine)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
