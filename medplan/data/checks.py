"""What is wrong with a raw dataset, one sentence per finding.

Tolerances: the spacings of two files agree within 0.1 %, their origins within 0.1 % of the smallest spacing
(but at least 0.001 mm), their direction cosines within 0.001. Header values are stored as float32, so that
smaller differences say nothing.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medplan.data.boxes import value_counts
from medplan.data.dataset import Dataset
from medplan.data.images import Geometry, as_label, fit_channels, read_stored
from medplan.data.rawcase import RawCase
from medplan.errors import DataError
from medplan.machine import cores
from medplan.progress import track

__all__ = ["Finding", "Loaded", "check", "differences", "inspect"]

Array = npt.NDArray[Any]

SPACING_TOLERANCE = 1e-3
ORIGIN_TOLERANCE, LEAST_ORIGIN_MM = 1e-3, 1e-3
DIRECTION_TOLERANCE = 1e-3
ROUNDING_TOLERANCE = 1e-2
"""Labels this near to integers are rounded by a repair."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        case: id, or an empty string where no case is concerned.
        file: the file to look at.
        sentence: what is wrong, where, what was expected and found, and what to do.
        is_error: whether the case cannot be used as it is; else it is worth a look.
        can_repair: whether `medplan.data.repairs.repair` can put it right.
    """

    case: str
    file: Path
    sentence: str
    is_error: bool = True
    can_repair: bool = False


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A case in memory: channels (C, Z, Y, X), label (Z, Y, X), and how often each label value occurs."""

    array: Array
    geometry: Geometry
    label: npt.NDArray[np.integer] | None = None
    counts: dict[int, int] = field(default_factory=dict)


def check(dataset: Dataset, *, workers: int | None = None) -> tuple[Finding, ...]:
    """Read every training and test case once and return all that is wrong, in the order of the cases.

    Args:
        workers: threads, and the largest number of cases in memory at once; None takes the number of cores.
    """
    cases = (*dataset.cases, *dataset.test_cases)
    findings = list(stray_findings(dataset))
    with ThreadPoolExecutor(workers or cores()) as pool:
        for found in track(
            pool.map(lambda case: inspect(case, dataset)[1], cases), label="checking", total=len(cases)
        ):
            findings.extend(found)
    return tuple(findings)


def stray_findings(dataset: Dataset) -> tuple[Finding, ...]:
    """Return a finding for each label file without an image, and each image that is passed over."""
    findings = []
    for path in dataset.strays:
        sentence = f"{path}: there is no image for this label file; add the image or remove the label."
        if path.parent.name.startswith("images"):
            sentence = (
                f"{path}: this image is passed over, since 'file_ending' is '{dataset.file_ending}'; convert "
                "it to that format."
            )
        findings.append(Finding(case="", file=path, sentence=sentence, is_error=False))
    return tuple(findings)


def inspect(case: RawCase, dataset: Dataset) -> tuple[Loaded | None, tuple[Finding, ...]]:
    """Read a case, each file once, and examine it.

    Returns: the case, or None if an error was found, and the findings.
    """
    notes = _Notes(case)
    array, geometry = _images(case, dataset, notes)
    label: npt.NDArray[np.integer] | None = None
    counts: dict[int, int] = {}
    if case.label is not None:
        label = _label(case.label, geometry, notes)
    if label is not None and case.label is not None:
        counts = value_counts(label)
        _declared(case.label, counts, dataset, notes)
    if array is None or geometry is None or any(finding.is_error for finding in notes.found):
        return None, tuple(notes.found)
    return Loaded(array=array, geometry=geometry, label=label, counts=counts), tuple(notes.found)


def differences(
    found: Geometry,
    expected: Geometry,
    *,
    origin: float = ORIGIN_TOLERANCE,
    direction: float = DIRECTION_TOLERANCE,
) -> dict[str, str]:
    """Return in what two grids differ (``shape``, ``spacing``, ``origin``, ``direction``), with values.

    Args:
        origin: what origins may differ by, as a share of the smallest spacing; at least 0.001 mm.
        direction: what each direction cosine may differ by.
    """
    result: dict[str, str] = {}
    if found.shape != expected.shape:
        result["shape"] = f"{found.shape} vs {expected.shape} voxels (z, y, x)"
    if found.spacing_mm is None or expected.spacing_mm is None:
        return result
    one, other = np.array(found.spacing_mm), np.array(expected.spacing_mm)
    if bool((np.abs(one - other) > SPACING_TOLERANCE * other).any()):
        result["spacing"] = f"{_rounded(found.spacing_mm)} vs {_rounded(expected.spacing_mm)} mm (z, y, x)"
    shift = np.abs(np.array(found.origin_mm) - np.array(expected.origin_mm))
    if float(shift.max()) > max(LEAST_ORIGIN_MM, origin * float(other.min())):
        result["origin"] = f"{_rounded(found.origin_mm)} vs {_rounded(expected.origin_mm)} mm (x, y, z)"
    turn = np.abs(np.array(found.direction) - np.array(expected.direction))
    if float(turn.max()) > direction:
        result["direction"] = f"{_rounded(found.direction)} vs {_rounded(expected.direction)}"
    return result


class _Notes:
    """Collects the findings of one case."""

    def __init__(self, case: RawCase) -> None:
        self.case = case
        self.found: list[Finding] = []

    def add(self, file: Path, what: str, *, is_error: bool = True, can_repair: bool = False) -> None:
        sentence = f"case '{self.case.id}': {what} [{file}]."
        self.found.append(
            Finding(case=self.case.id, file=file, sentence=sentence, is_error=is_error, can_repair=can_repair)
        )

    def add_error(self, file: Path, error: DataError) -> None:
        self.found.append(Finding(case=self.case.id, file=file, sentence=f"case '{self.case.id}': {error}"))

    def compare(self, file: Path, found: Geometry, expected: Geometry, words: str) -> None:
        different = differences(found, expected)
        # A label that lies elsewhere but has the same shape and spacing does no harm, since arrays are
        # matched voxel by voxel; it is reported because the label may belong to another scan.
        for what, values in different.items():
            can_repair = "shape" not in different
            self.add(
                file,
                f"{words} differ in {what}: {values}; export it again on the grid of the image"
                + (", or let --repair take that grid" if can_repair else ""),
                is_error=what in ("shape", "spacing"),
                can_repair=can_repair,
            )


def _images(case: RawCase, dataset: Dataset, notes: _Notes) -> tuple[Array | None, Geometry | None]:
    parts: list[Array] = []
    geometry: Geometry | None = None
    for path in case.images:
        try:
            array, found = read_stored(path)
        except DataError as error:
            notes.add_error(path, error)
            continue
        if len(case.images) > 1 and len(array) != 1:
            notes.add(
                path, f"the file of one channel should hold one volume, found {len(array)} (4-D or RGB)"
            )
        elif geometry is not None:
            notes.compare(path, found, geometry, f"this channel and {case.images[0].name}")
        geometry = geometry or found
        _intensities(path, array, notes)
        parts.append(array)
    if not parts or len(parts) != len(case.images) or len({part.shape[1:] for part in parts}) > 1:
        return None, geometry
    array = parts[0] if len(parts) == 1 else np.concatenate(parts)
    try:
        array = fit_channels(array, len(dataset.channels), case.images[0])
    except DataError as error:
        notes.add_error(case.images[0], error)
    return array, geometry


def _intensities(path: Path, array: Array, notes: _Notes) -> None:
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        number = int(array.size - np.count_nonzero(np.isfinite(array)))
        notes.add(
            path,
            f"{number} of {array.size} voxels are NaN or infinite; --repair takes the nearest finite "
            "intensity",
            can_repair=number < array.size,
        )
    elif low == high:
        notes.add(
            path,
            f"the image is empty: all voxels are {low:g}; replace the file or list the case in 'exclude'",
        )


def _label(path: Path, geometry: Geometry | None, notes: _Notes) -> npt.NDArray[np.integer] | None:
    try:
        array, found = read_stored(path, label=True)
    except DataError as error:
        notes.add_error(path, error)
        return None
    if geometry is not None:
        notes.compare(path, found, geometry, "label and image")
    try:
        return as_label(array, path)
    except DataError as error:
        notes.found.append(
            Finding(
                case=notes.case.id,
                file=path,
                sentence=f"case '{notes.case.id}': {error}",
                can_repair=len(array) == 1 and nearly_integer(array),
            )
        )
        return None


def nearly_integer(array: Array) -> bool:
    """Return whether all values are within 0.01 of an integer."""
    with np.errstate(invalid="ignore"):  # NaN and infinity fail the comparison
        return bool((np.abs(array - np.rint(array)) <= ROUNDING_TOLERANCE).all())


def _declared(path: Path, counts: dict[int, int], dataset: Dataset, notes: _Notes) -> None:
    declared = {0, *(value for values in dataset.labels.values for value in values)}
    known = declared | ({dataset.labels.ignore} if dataset.labels.ignore is not None else set())
    unknown = sorted(set(counts) - known)
    if unknown and not dataset.labels.others_are_background:
        shown = ", ".join(f"{value} ({counts[value]} voxels)" for value in unknown[:5])
        shown += f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        notes.add(
            path,
            f"label values that dataset.json does not declare: {shown}; it knows {_short(sorted(known))}; "
            "declare them under 'labels' or correct the file",
        )
    elif not set(counts) & (declared - {0}):
        notes.add(path, "the label file holds no class, only background", is_error=False)


def _short(values: Sequence[int]) -> str:
    return str(values) if len(values) <= 12 else f"{values[:6]} to {values[-1]} ({len(values)} values)"


def _rounded(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.5g}" for value in values) + ")"
