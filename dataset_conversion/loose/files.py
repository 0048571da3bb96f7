"""Finds the scans and labels below a folder, and says what else lies there."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset_conversion.listing import files_of, folders_below
from dataset_conversion.loose.names import found
from dataset_conversion.writing import in_threads
from medplan.data import dicom
from medplan.data.formats import PICTURE_ENDINGS, VOLUME_ENDINGS, ending_of
from medplan.errors import DataError

__all__ = ["Listing", "list_files"]

VOXELS = (".raw", ".zraw", ".raw.gz")
"""Files that belong to .mhd and .nhdr files."""
OBJECTS = {b"1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT", b"1.2.840.10008.5.1.4.1.1.66.4": "DICOM-SEG"}
HEAD = 1024
SINGLE = "one file each"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Volumes and DICOM folders, or, where there are none, pictures; and notes on all other files."""

    paths: tuple[Path, ...]
    are_pictures: bool
    notes: tuple[str, ...]


def list_files(source: Path) -> Listing:
    """List a folder and all folders in it; of files only those are opened that may be DICOM."""
    volumes: list[Path] = []
    images: list[Path] = []
    others: dict[Path, list[Path]] = {}
    for folder in folders_below(source):
        files = files_of(folder)
        volumes += [path for path in files if ending_of(path) in VOLUME_ENDINGS]
        images += [path for path in files if ending_of(path) in PICTURE_ENDINGS]
        rest = [path for path in files if not ending_of(path) and not path.name.lower().endswith(VOXELS)]
        others[folder] = [path for path in rest if path.name != "dataset.json"]
    objects = {path: kind for files in others.values() for path in files if (kind := _object(path))}
    # Volumes beside a series are mostly made of it; labels are drawn on it.
    converted = {path.parent for path in volumes if not found(path, source).is_label}
    may_be = [folder for folder, files in others.items() if set(files) - objects.keys()]
    may_be = [folder for folder in may_be if folder != source and folder not in converted]
    series = dict(zip(may_be, in_threads(_trouble, may_be, label="looking for DICOM series"), strict=True))
    volumes += [folder for folder, trouble in series.items() if trouble == ""]
    for folder in [folder for folder, trouble in series.items() if trouble == SINGLE]:
        volumes += [path for path in others[folder] if path not in objects]
    troubles = [trouble for trouble in series.values() if trouble not in (None, "", SINGLE)]
    unknown = [
        path
        for folder, files in others.items()
        for path in files
        if path not in objects and series.get(folder) is None
    ]
    notes = []
    if objects:
        first, kind = next(iter(objects.items()))
        notes.append(
            f"{len(objects)} {kind} file(s) are not read ({_place(first, source)}); export them as NIfTI or "
            ".seg.nrrd beside their scans (3D Slicer opens and saves them)."
        )
    notes += [f"a DICOM folder is left out: {trouble}" for trouble in troubles]
    if volumes and images:
        notes.append(f"{len(images)} picture(s) among the volumes are left out, {_some(images, source)}.")
    if unknown:
        counts = Counter(path.suffix.lower() or "without ending" for path in unknown)
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common(4))
        notes.append(
            f"{len(unknown)} file(s) of other kinds are left out ({kinds}), {_some(unknown, source)}."
        )
    return Listing(paths=tuple(volumes or images), are_pictures=not volumes, notes=tuple(notes))


def _object(path: Path) -> str:
    """Return what a DICOM file holds in place of a slice, if its header says so."""
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    if head[128:132] != b"DICM":
        return ""
    return next((kind for uid, kind in OBJECTS.items() if uid + b"\0" in head or uid + b" " in head), "")


def _trouble(folder: Path) -> str | None:
    """Return what is wrong with a DICOM folder, or nothing; None if it is none, `SINGLE` if of its files
    each is a scan.
    """
    if not dicom.is_series_folder(folder):
        return None
    if dicom.are_single_files(folder):
        return SINGLE
    try:
        dicom.slices(folder)
    except DataError as error:
        return str(error)
    return ""


def _place(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix()


def _some(paths: Sequence[Path], source: Path) -> str:
    return "for instance " + ", ".join(_place(path, source) for path in paths[:2])
