"""Images to predict: a file, a folder of files, a DICOM folder, or a folder of DICOM folders."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from medplan.data import dicom
from medplan.data.formats import IMAGE_ENDINGS, PICTURE_ENDINGS, ending_of, stem_of
from medplan.data.rawcase import RawCase
from medplan.errors import DataError

__all__ = ["find_inputs"]

LABEL_OF = re.compile(r"(.+)[ ._-](?:seg|segmentation|label|labels|mask|gt|roi|annotation)", re.IGNORECASE)

logger = logging.getLogger(__name__)


def find_inputs(path: Path, channels: int, file_ending: str | None = None) -> tuple[RawCase, ...]:
    """List the cases below a path; no image is opened.

    Args:
        path: an image file (of several channels, any one of them), a folder of image files named
            ``CASE_0000`` (or just ``CASE``: one channel, a picture, or all channels in one file), a folder
            with one DICOM series, or a folder of such folders (``CASE``, or ``CASE_0000`` where there are
            several channels).
        channels: number that the model needs.
        file_ending: where volumes and pictures lie in one folder, those of its kind are taken.

    Returns: cases without labels, sorted by id.
    Raises: DataError if there is nothing to predict, or naming the channels that are missing.
    """
    path = Path(path)
    if path.is_file():
        if not ending_of(path):
            raise DataError(
                f"{path}: this is none of the formats that are read ({' '.join(IMAGE_ENDINGS)}); of a DICOM "
                "series name the folder."
            )
        # CASE and CASE_0000 beside each other are two scans; the one that was named is meant.
        family = [
            other
            for other in path.parent.iterdir()
            if other.is_file() and ending_of(other) == ending_of(path) and _are_one(path, other, channels)
        ]
        return _grouped(family, channels, path)
    if not path.is_dir():
        raise DataError(f"{path}: there is no such file or folder.")
    files = [
        other for other in path.iterdir() if other.is_file() and ending_of(other) and other.name[0] != "."
    ]
    if files:
        volumes = [other for other in files if ending_of(other) not in PICTURE_ENDINGS]
        pictures = [other for other in files if ending_of(other) in PICTURE_ENDINGS]
        kinds = {"volumes": volumes, "pictures": pictures}
        taken, left = ("pictures", "volumes") if file_ending in PICTURE_ENDINGS else ("volumes", "pictures")
        if volumes and pictures:
            logger.warning(
                "%s: the %d %s are taken, the %d %s (%s) are not.",
                path,
                len(kinds[taken]),
                taken,
                len(kinds[left]),
                left,
                min(other.name for other in kinds[left]),
            )
        cases = _grouped(_without_labels(kinds[taken] or kinds[left], channels, path), channels, path)
        _warn_of_channels(cases, channels)
        return cases
    if dicom.is_series_folder(path):
        dicom.slices(path)
        return _grouped([path], channels, path)
    folders = [other for other in path.iterdir() if other.is_dir() and dicom.is_series_folder(other)]
    for folder in folders:
        dicom.slices(folder)
    if not folders:
        raise DataError(
            f"{path}: there are no images in this folder; expected {' '.join(IMAGE_ENDINGS)}, a DICOM "
            "series, or folders with one DICOM series each."
        )
    return _grouped(folders, channels, path)


def _without_labels(files: Sequence[Path], channels: int, where: Path) -> list[Path]:
    """Leave out label files that lie beside their scans (``CASE_seg``), and say so."""
    cases = {_split(file, channels)[0] for file in files}
    labels = [file for file in files if (named := LABEL_OF.fullmatch(stem_of(file))) and named[1] in cases]
    if labels:
        first = min(label.name for label in labels)
        logger.warning(
            "%s: label files beside their scans are left out: %d, such as %s.", where, len(labels), first
        )
    return [file for file in files if file not in labels]


def _warn_of_channels(cases: Sequence[RawCase], channels: int) -> None:
    """Say so where CASE_0001 is read as a scan because the model has no such channel, beside CASE_0000."""
    names = {case.id for case in cases}
    for case in cases:
        match = re.fullmatch(r"(.+)_(\d{4})", case.id)
        if match is not None and match[1] in names and int(match[2]) >= channels:
            logger.warning(
                "'%s' is taken for a scan of its own, since the model has %d channel(s); remove it if it is "
                "another channel of '%s'.",
                case.id,
                channels,
                match[1],
            )


def _split(path: Path, channels: int) -> tuple[str, int | None]:
    """Return the case id and the channel number; None if the name carries none."""
    stem = path.name if path.is_dir() else stem_of(path)
    match = re.fullmatch(r"(.+)_(\d{4})", stem)
    # A year or a number at the end of a name is no channel, unless the model has that many.
    if match is None or int(match[2]) >= max(channels, 1):
        return stem, None
    return match[1], int(match[2])


def _are_one(path: Path, other: Path, channels: int) -> bool:
    """Whether two files can be channels of one case."""
    (case, number), (other_case, other_number) = _split(path, channels), _split(other, channels)
    return case == other_case and (number is None) == (other_number is None)


def _grouped(paths: Sequence[Path], channels: int, where: Path) -> tuple[RawCase, ...]:
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(paths):
        case_id, number = _split(path, channels)
        other = found.setdefault(case_id, {}).setdefault(number or 0, path)
        if other != path:
            raise DataError(
                f"{where}: two files are the same case '{case_id}': {other.name} and {path.name}."
            )
    return tuple(_case(case_id, found[case_id], channels, where) for case_id in sorted(found))


def _case(case_id: str, files: dict[int, Path], channels: int, where: Path) -> RawCase:
    first = files.get(0)
    numbered = first is not None and _split(first, channels)[1] is not None
    holds_all = first is not None and len(files) == 1 and not first.is_dir()
    if first is not None and holds_all and (not numbered or ending_of(first) in PICTURE_ENDINGS):
        return RawCase(id=case_id, images=(first,))
    missing = [f"{case_id}_{number:04d}" for number in range(channels) if number not in files]
    if missing:
        raise DataError(
            f"{where}: case '{case_id}' lacks {'channel' if len(missing) == 1 else 'channels'} "
            f"{', '.join(missing)}; the model needs {channels}, one file each. 'medplan convert scans' gives "
            "the files of a folder these names, in imagesTr."
        )
    return RawCase(id=case_id, images=tuple(files[number] for number in range(channels)))
