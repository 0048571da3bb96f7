"""A copy of a raw dataset in which all is corrected that needs no guess; the source stays as it is."""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medplan.data.checks import Finding, differences, inspect, nearly_integer, stray_findings
from medplan.data.dataset import Dataset
from medplan.data.description import labels_entry
from medplan.data.formats import ending_of
from medplan.data.images import Geometry, as_label, read_stored, write_image, write_label
from medplan.data.rawcase import RawCase
from medplan.errors import DataError
from medplan.progress import track
from medplan.records import write_text

__all__ = ["repair"]

Array = npt.NDArray[Any]

DROPPED_KEYS = ("dataset", "training", "test", "modality", "exclude")
"""Keys of dataset.json that name files of the source, or that are written anew."""

logger = logging.getLogger(__name__)


def repair(dataset: Dataset, target: Path) -> tuple[Finding, ...]:
    """Write a copy of a dataset in nnU-Net v2's layout, with corrected files.

    Put right are: grids of labels and channels that differ although the shapes agree (the grid of the first
    channel is taken); NaN and infinite intensities (the nearest finite one is taken); labels within 0.01 of
    an integer (rounded); 4-D files (one file per channel). Everything else is copied as it is. Cases that
    still have an error are left out of the copy.

    Args:
        target: folder that does not exist yet, or is empty, outside the dataset.

    Returns: what could not be put right.
    Raises: DataError if the target is not such a folder.
    """
    target = Path(target)
    source = dataset.folder.resolve()
    if target.resolve() == source or source in target.resolve().parents:
        raise DataError(
            f"{target}: the corrected copy should lie outside the dataset itself; name another folder."
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: the corrected copy needs a folder that is new or empty.")
    left: list[Finding] = list(stray_findings(dataset))
    labelled, copied = 0, set()
    parts = [*(("Tr", case) for case in dataset.cases), *(("Ts", case) for case in dataset.test_cases)]
    for part, case in track(parts, label=f"correcting {dataset.name}"):
        _, findings = inspect(case, dataset)
        remaining = [finding for finding in findings if not finding.can_repair]
        left.extend(remaining)
        if any(finding.is_error for finding in remaining):
            continue
        _write_case(case, findings, dataset, target, part)
        copied.add(case.id)
        labelled += part == "Tr" and case.is_labelled
    # Written last, so that a copy that was interrupted is not taken for a whole dataset.
    _describe(dataset, target, copied, labelled)
    return tuple(left)


def _write_case(
    case: RawCase, findings: Sequence[Finding], dataset: Dataset, target: Path, part: str
) -> None:
    ending = dataset.file_ending
    wrong = {finding.file for finding in findings}
    folder = target / f"images{part}"
    folder.mkdir(parents=True, exist_ok=True)
    first: Geometry | None = None
    for number, path in enumerate(case.images):
        name = folder / f"{case.id}_{number:04d}{ending}"
        array, geometry = read_stored(path)
        first = first or geometry
        is_volumes = not dataset.is_pictures and len(array) > 1
        if path not in wrong and not is_volumes and ending_of(path) != ".mhd":
            shutil.copyfile(path, name)
            continue
        array = _finite(array)
        if not is_volumes:
            write_image(name, array, replace(first, shape=geometry.shape))
            continue
        for channel, volume in enumerate(array):
            write_image(folder / f"{case.id}_{channel:04d}{ending}", volume, geometry)
    if case.label is None or first is None:
        return
    labels = target / f"labels{part}"
    labels.mkdir(parents=True, exist_ok=True)
    name = labels / f"{case.id}{ending_of(case.label)}"
    if case.label not in wrong and ending_of(case.label) != ".mhd":
        shutil.copyfile(case.label, name)
        return
    array, found = read_stored(case.label, label=True)
    write_label(name, as_label(np.rint(array) if nearly_integer(array) else array, case.label), first)
    changed = ", ".join(differences(found, first)) or "values"
    logger.info("%s: written anew (%s)", name, changed)


def _finite(array: Array) -> Array:
    """Replace what is not finite by the nearest finite voxel of the channel."""
    is_finite = np.isfinite(array)
    if is_finite.all():
        return array
    from scipy.ndimage import distance_transform_edt

    result = array.copy()
    for channel, good in zip(result, is_finite, strict=True):
        nearest = distance_transform_edt(~good, return_distances=False, return_indices=True)
        channel[...] = channel[tuple(nearest)]
    return result


def _describe(dataset: Dataset, target: Path, copied: set[str], labelled: int) -> None:
    """Write dataset.json in nnU-Net v2's form, with the free text of the source."""
    data = json.loads((dataset.folder / "dataset.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in data.items() if key not in DROPPED_KEYS}
    kept["channel_names"] = {str(number): name for number, name in enumerate(dataset.channels)}
    kept["labels"] = labels_entry(dataset.labels)
    kept["numTraining"] = labelled
    kept["file_ending"] = dataset.file_ending
    for key in ("domain", "patient"):
        if key in kept:
            kept[key] = {case: value for case, value in kept[key].items() if case in copied}
    if "splits" in kept:
        kept["splits"] = {
            name: {role: [case for case in ids if case in copied] for role, ids in roles.items()}
            for name, roles in kept["splits"].items()
        }
    target.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(kept, indent=1) + "\n", target / "dataset.json")
