"""A folder of one's own scans, some of them labelled, in whatever order it is.

Labels are found by their names and put on the voxel grid of their scan, so that nobody has to rename files or
to write a dataset.json.
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_conversion.card import Card
from dataset_conversion.listing import files_of, folders_below, require
from dataset_conversion.volumes import (
    Volume,
    grid_of,
    on_grid,
    read_itk,
    read_nifti,
    read_series,
    segment_names,
)
from dataset_conversion.writing import Case, in_threads, write_dataset
from medplan.data.description import read_description
from medplan.data.dicom import is_series_folder
from medplan.data.formats import VOLUME_ENDINGS, ending_of, stem_of
from medplan.errors import DataError

CARD = Card(
    name="Scans",
    title="Your own scans: any folder of NIfTI, NRRD, MetaImage or DICOM, some with labels",
    about="Whatever is in the folder; a scan without a label file is an unlabelled case.",
    modality="one kind of scan",
    home="your own",
    licence="your own",
    layout=(
        "scans at any depth, one file or one DICOM folder each; a label file is called like its scan and has "
        "one of the words seg, segmentation, label, mask, gt, annotation or roi in its name, or lies in a "
        "folder of such a name (labels/, masks/), or is the only label in the folder of one scan. Labels on "
        "a crop or a mirrored copy of the scan's grid are put back; where that is impossible, or the scan "
        "is missing, the label is left out with a note",
    ),
    channels=("scan",),
    labels={},
    num_cases="any",
    serves=("sdmessenger", "bijros", "supervised"),
    split="By scan. Add `patient` to dataset.json if several scans are of one person.",
)

LABEL_WORDS = frozenset(
    "seg segs segmentation segmentations label labels labelstr mask masks gt annotation annotations roi "
    "rois".split()
)
NEUTRAL_WORDS = frozenset("image images imagestr img imgs dicom dcm nii nifti".split())
MAX_CLASSES = 300


@dataclass(frozen=True, kw_only=True)
class _File:
    path: Path
    key: tuple[str, ...]
    is_label: bool


def convert(source: Path, target: Path) -> None:
    """Pair scans and labels by name and write both; give the same command again when labels were added.

    What was put into dataset.json by hand stays: names of classes and channel, `exclude`, patients, domains.

    Raises: DataError if there are no scans, if a scan has two labels, or if a label file holds other things.
    """
    files = _files(source)
    images = [file for file in files if not file.is_label]
    endings = ", ".join(VOLUME_ENDINGS)
    require(source, bool(images), f"scans ({endings} or DICOM folders)")
    labels, notes = _paired(images, [file for file in files if file.is_label], source)
    names, channel, more = _written_by_hand(target / "dataset.json")
    cases: list[Case] = []
    work = [(image.path, labels.get(image.path)) for image in images]
    for (path, label), (values, note) in zip(
        work, in_threads(_examined, work, label="reading labels"), strict=True
    ):
        if label is not None and note:
            notes.append(f"{label.relative_to(source).as_posix()}: {note}.")
        for value in sorted(set(values or ()) - {0} - names.keys()):
            names[value] = _name(value, names, label)
        cases.append(
            Case(
                id=_id(path.relative_to(source)),
                images=(path if path.name.endswith((".nii", ".nii.gz")) else partial(_read, path),),
                label=partial(_label, label, path) if label is not None and values else None,
                is_open=True,
            )
        )
    for case in cases:
        if case.label is None and (target / "labelsTr" / f"{case.id}.nii.gz").exists():
            notes.append(
                f"labelsTr/{case.id}.nii.gz: has no label file in the source, and stays; delete it if it "
                "should not count."
            )
    write_dataset(
        CARD,
        cases,
        target,
        source=source,
        labels={names[value]: value for value in sorted(names)},
        channels=(channel,),
        notes=notes,
        more=_about(more, {case.id for case in cases}),
    )


def _written_by_hand(path: Path) -> tuple[dict[int, str], str, dict[str, Any]]:
    """Return the names of label values and of the channel in an earlier dataset.json, and all of it."""
    if not path.is_file():
        return {}, CARD.channels[0], {}
    description = read_description(path.parent)
    labels = zip(description.labels.names, description.labels.values, strict=True)
    names = {values[0]: name for name, values in labels}
    return names, description.channels[0], json.loads(path.read_text())


def _about(description: Mapping[str, Any], cases: set[str]) -> dict[str, Any]:
    """Return what a description says of cases that are still there."""
    kept: dict[str, Any] = {
        key: {case: name for case, name in description.get(key, {}).items() if case in cases}
        for key in ("patient", "domain")
    }
    kept["exclude"] = [case for case in description.get("exclude", []) if case in cases]
    return {key: value for key, value in kept.items() if value}


def _files(source: Path) -> tuple[_File, ...]:
    found: list[_File] = []
    for folder in folders_below(source):
        volumes = [path for path in files_of(folder) if ending_of(path) in VOLUME_ENDINGS]
        if not volumes and folder != source and is_series_folder(folder):
            volumes = [folder]
        found += [_file(path, source) for path in volumes]
    return tuple(found)


def _file(path: Path, source: Path) -> _File:
    """Split a name into words: some call it a label, some are neutral, all others make up the key."""
    relative = path.relative_to(source)
    parts = [_words(part) for part in (*relative.parts[:-1], stem_of(path))]
    # Of a folder only a name that says nothing else makes labels of its files: 'Seg study 7/' is a patient.
    is_label = bool(LABEL_WORDS & set(parts[-1])) or any(
        set(part) <= LABEL_WORDS for part in parts[:-1] if part
    )
    words = (word for part in parts for word in part if word not in LABEL_WORDS | NEUTRAL_WORDS)
    return _File(path=path, key=tuple(words), is_label=is_label)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+|\d+", text.lower())


def _paired(
    images: Sequence[_File], labels: Sequence[_File], source: Path
) -> tuple[dict[Path, Path], list[str]]:
    """Give every label its scan: the one whose key it begins with, the longest, else the only one beside."""
    found: dict[Path, Path] = {}
    notes = []
    for label in labels:
        fitting = [image for image in images if image.key == label.key[: len(image.key)] and image.key]
        longest = max((len(image.key) for image in fitting), default=0)
        best = [image for image in fitting if len(image.key) == longest]
        beside = [image for image in images if image.path.parent == label.path.parent]
        best = best if len(best) == 1 else beside
        shown = label.path.relative_to(source).as_posix()
        if len(best) != 1:
            notes.append(f"{shown}: there is no scan of that name, the label is left out.")
        elif best[0].path in found:
            first = found[best[0].path].relative_to(source).as_posix()
            raise DataError(
                f"{source}: two labels belong to '{best[0].path.relative_to(source)}': {first} and {shown}; "
                "join them into one file, or move one of them away."
            )
        else:
            found[best[0].path] = label.path
    return found, notes


def _examined(work: tuple[Path, Path | None]) -> tuple[tuple[int, ...] | None, str]:
    """Return the values that occur in a label (None: there is no usable one) and what to note about it."""
    path, label = work
    if label is None:
        return None, ""
    try:
        voxels = _label(label, path).voxels
    except _OtherGrid as error:
        return None, f"{error}; the label is left out and the scan is unlabelled. Export it again on its scan"
    present = tuple(int(value) for value in np.unique(voxels))
    only_background = "only background, which says that nothing is there; delete it if it was not drawn yet"
    return present, "" if any(present) else only_background


class _OtherGrid(Exception):
    """A label does not lie on the voxels of its scan."""


def _label(label: Path, image: Path) -> Volume:
    """Return a label on the grid of its scan, as whole numbers."""
    read = _read(label)
    values = np.unique(read.voxels)
    odd = values[~np.isclose(values, np.rint(values), atol=1e-2)]
    if odd.size or len(values) > MAX_CLASSES:
        what = f"a value is {odd[0]:g}" if odd.size else f"it holds {len(values)} different values"
        raise DataError(f"{label}: {what}; this is no label file. Move it away, or give it another name.")
    shape, affine = grid_of(image) if image.is_file() else _grid(_read(image))
    try:
        return on_grid(replace(read, voxels=np.rint(read.voxels).astype(np.int32)), shape, affine)
    except ValueError as error:
        raise _OtherGrid(str(error)) from None


def _grid(volume: Volume) -> tuple[tuple[int, ...], npt.NDArray[np.float64]]:
    return volume.voxels.shape, volume.affine


def _name(value: int, names: Mapping[int, str], label: Path | None) -> str:
    named = segment_names(label).get(value) if label is not None else None
    return named if named and named not in names.values() else f"label {value}"


def _read(path: Path) -> Volume:
    if path.is_dir():
        return read_series(path)[0]
    return read_nifti(path) if ending_of(path) in (".nii", ".nii.gz") else read_itk(path)


def _id(path: Path) -> str:
    plain = unicodedata.normalize("NFKD", path.with_name(stem_of(path)).as_posix())
    # Accents fall away; letters of other scripts become their code, so that names stay apart.
    kept = (
        c if c.isascii() or not c.isalnum() else f"u{ord(c):x}" for c in plain if not unicodedata.combining(c)
    )
    words = re.sub(r"[^A-Za-z0-9-]+", "_", "".join(kept))
    return re.sub(r"(^|_)(images|imagesTr)_", r"\1", words).strip("_") or "scan"
