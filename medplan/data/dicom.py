"""DICOM series folders, found and sorted by SimpleITK's GDCM reader."""

from pathlib import Path

import numpy as np

from medplan.errors import DataError

__all__ = ["are_single_files", "is_series_folder", "slices"]

GAP_TOLERANCE = 0.1
"""Largest accepted deviation of a distance between slices, relative to the median distance."""


def is_series_folder(folder: Path) -> bool:
    """Whether DICOM files lie directly in the folder."""
    return folder.is_dir() and bool(_series(folder))


def are_single_files(folder: Path) -> bool:
    """Whether a folder holds several series of one file each, as X-rays are: pictures of their own."""
    import SimpleITK as sitk

    found = _series(folder)
    counts = [len(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)) for uid in found]
    return len(counts) > 1 and max(counts) == 1


def slices(folder: Path) -> tuple[str, ...]:
    """Return the files of the one series in a folder, in the order of their position.

    Raises: DataError if there is no series or several, or if slices are missing between others.
    """
    import SimpleITK as sitk

    found = _series(folder)
    if not found:
        raise DataError(f"{folder}: there is no DICOM series in this folder.")
    files = {uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid) for uid in found}
    if len(found) > 1:
        listed = "; ".join(
            f"{_describe(names[0])} ({len(names)} files, {uid})" for uid, names in files.items()
        )
        raise DataError(
            f"{folder}: there are {len(found)} DICOM series in this folder, expected one: {listed}. Put each "
            "series into a folder of its own."
        )
    names = tuple(str(name) for name in files[found[0]])
    _refuse_gaps(folder, names)
    return names


def _series(folder: Path) -> tuple[str, ...]:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return tuple(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))


def _describe(name: str) -> str:
    """Return the series description and modality of a file, as far as it has them."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    reader.LoadPrivateTagsOff()
    reader.ReadImageInformation()
    tags = [
        reader.GetMetaData(tag).strip() for tag in ("0008|103e", "0008|0060") if reader.HasMetaDataKey(tag)
    ]
    return " ".join(tag for tag in tags if tag) or Path(name).name


def _refuse_gaps(folder: Path, names: tuple[str, ...]) -> None:
    import SimpleITK as sitk

    if len(names) < 3:
        return
    origins, normal = [], np.zeros(3)
    for name in names:
        reader = sitk.ImageFileReader()
        reader.SetFileName(name)
        reader.ReadImageInformation()
        origins.append(reader.GetOrigin())
        normal = np.array(reader.GetDirection()).reshape(3, 3)[:, 2]
    gaps = np.diff(np.array(origins) @ normal)
    usual = float(np.median(np.abs(gaps)))
    worst = int(np.argmax(np.abs(np.abs(gaps) - usual)))
    if usual == 0 or abs(abs(float(gaps[worst])) - usual) > GAP_TOLERANCE * usual:
        raise DataError(
            f"{folder}: slices are missing or doubled: most are {usual:.3g} mm apart, but "
            f"{Path(names[worst]).name} and {Path(names[worst + 1]).name} are "
            f"{abs(float(gaps[worst])):.3g} mm apart."
        )
