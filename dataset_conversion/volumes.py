"""Volumes on their way from a source format into NIfTI.

A `Volume` follows NIfTI itself: voxels are indexed (x, y, z) and the affine leads to RAS millimetres. Nothing
is reordered or resampled here, so that a converted file equals its source voxel by voxel.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medplan.data.formats import ending_of
from medplan.errors import DataError

__all__ = [
    "Grid",
    "Segment",
    "Volume",
    "affine_of",
    "grid_of",
    "read_h5",
    "read_itk",
    "read_layers",
    "read_nifti",
    "read_series",
    "read_volume",
    "save",
    "segments",
    "shape_of",
]

Grid = tuple[tuple[int, ...], npt.NDArray[np.float64]]
"""Shape (X, Y, Z) and affine, voxel index to RAS millimetres."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class Volume:
    """Voxels (X, Y, Z) or (X, Y, Z, frames) and their affine (4, 4), voxel index to RAS millimetres.

    `scale` is written into the header where values differ from voxels: value = voxel * slope + intercept.
    """

    voxels: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    scale: tuple[float, float] | None = None


def affine_of(
    spacing_mm: Sequence[float], *, axes: str = "LPS", origin_mm: Sequence[float] = (0, 0, 0)
) -> Any:
    """Return an affine for axes that point towards the given sides, e.g. "LAS"; `origin_mm` is in RAS."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (letter, spacing) in enumerate(zip(axes, spacing_mm, strict=True)):
        row = next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        affine[row, column] = spacing if letter in "RAS" else -spacing
    affine[:3, 3] = origin_mm
    return affine


def read_nifti(path: Path) -> Volume:
    """Read a NIfTI or FreeSurfer .mgz file with its stored type. Raises: DataError if it cannot be read."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        image = nibabel.load(path)
        return Volume(voxels=np.asanyarray(image.dataobj), affine=np.asarray(image.affine, dtype=np.float64))
    except (ImageFileError, EOFError, OSError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as an image ({error}); fetch the file again.") from None


def shape_of(path: Path) -> tuple[int, ...]:
    """Return the shape of a NIfTI or .mgz file from its header. Raises: DataError if it cannot be read."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        return tuple(int(size) for size in nibabel.load(path).shape)
    except (ImageFileError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as an image ({error}); fetch the file again.") from None


def grid_of(path: Path) -> Grid:
    """Return shape and affine of a volume file or DICOM folder from headers. Raises: DataError."""
    import nibabel

    if path.name.lower().endswith((".nii", ".nii.gz")):
        shape = shape_of(path)
        return shape, np.asarray(nibabel.load(path).affine, dtype=np.float64)
    files = _slices(path) if path.is_dir() else (path,)
    first, last = _header(files[0]), _header(files[-1])
    lengths, spacing = list(first.GetSize()), list(first.GetSpacing())
    if path.is_dir():
        lengths[2] = len(files)
        apart = np.linalg.norm(np.subtract(last.GetOrigin(), first.GetOrigin()))
        spacing[2] = float(apart) / (len(files) - 1) if len(files) > 1 else spacing[2]
    return tuple(lengths), _affine(spacing, first.GetOrigin(), first.GetDirection())


def read_volume(path: Path) -> Volume:
    """Read a NIfTI, NRRD or MetaImage file or a DICOM folder. Raises: DataError if it cannot be read."""
    if path.is_dir():
        return read_series(path)[0]
    return read_nifti(path) if ending_of(path) in (".nii", ".nii.gz") else read_itk(path)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A segment of 3D Slicer: its value in a layer, and its name if somebody gave it one."""

    layer: int
    value: int
    name: str


def segments(path: Path) -> tuple[Segment, ...]:
    """Return the segments that 3D Slicer described in a .seg.nrrd file, by value; else none."""
    if not path.name.lower().endswith(".nrrd"):
        return ()
    header = _header(path)
    said = {key: header.GetMetaData(key) for key in header.GetMetaDataKeys()}
    stems = [key.removesuffix("_LabelValue") for key in said if re.fullmatch(r"Segment\d+_LabelValue", key)]
    found = [
        Segment(
            layer=int(said.get(f"{stem}_Layer", 0)),
            value=int(said[f"{stem}_LabelValue"]),
            # Segment_1 is the name of those that have none.
            name=re.sub(r"^Segment_\d+$", "", said.get(f"{stem}_Name", "")),
        )
        for stem in stems
    ]
    return tuple(sorted(found, key=lambda segment: (segment.layer, segment.value)))


def read_layers(path: Path) -> tuple[Volume, ...]:
    """Read a volume as one or, of a .seg.nrrd file with overlapping segments, as its layers."""
    if path.is_dir() or ending_of(path) in (".nii", ".nii.gz"):
        volume = read_volume(path)
        single = volume.voxels.ndim == 4 and volume.voxels.shape[3] == 1
        return (replace(volume, voxels=volume.voxels[..., 0]) if single else volume,)
    import SimpleITK

    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        raise DataError(f"{path}: cannot be read as an image ({_last_line(error)}).") from None
    count = image.GetNumberOfComponentsPerPixel()
    parts = [image] if count == 1 else [SimpleITK.VectorIndexSelectionCast(image, n) for n in range(count)]
    return tuple(_from_itk(part) for part in parts)


def read_itk(path: Path) -> Volume:
    """Read a .nrrd, .mha or .mhd file. Raises: DataError if it cannot be read."""
    import SimpleITK

    try:
        return _from_itk(SimpleITK.ReadImage(str(path)))
    except RuntimeError as error:
        raise DataError(f"{path}: cannot be read as an image ({_last_line(error)}).") from None


def read_series(folder: Path) -> tuple[Volume, tuple[Path, ...]]:
    """Read a DICOM folder; returns the volume and its files in the order of the slices, lowest z index first.

    Raises: DataError if the folder does not hold exactly one readable series.
    """
    import SimpleITK

    files = _slices(folder)
    try:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames([str(file) for file in files])
        return _from_itk(reader.Execute()), files
    except RuntimeError as error:
        raise DataError(f"{folder}: the DICOM series cannot be read ({_last_line(error)}).") from None


def _slices(folder: Path) -> tuple[Path, ...]:
    import SimpleITK

    series = SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise DataError(f"{folder}: expected the slices of one DICOM series, found {len(series)} series.")
    return tuple(map(Path, SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])))


def _header(path: Path) -> Any:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError(f"{path}: cannot be read as an image ({_last_line(error)}).") from None
    return reader


def read_h5(path: Path, key: str) -> npt.NDArray[Any]:
    """Read one array of an HDF5 file. Raises: DataError naming the arrays that are there if `key` is not."""
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path}: reading .h5 files needs h5py; install it with: pip install h5py") from None
    try:
        with h5py.File(path, "r") as file:
            if key not in file:
                raise DataError(f"{path}: expected an array '{key}', found {', '.join(file) or 'nothing'}.")
            return np.asarray(file[key][()])
    except OSError as error:
        raise DataError(f"{path}: cannot be read as an .h5 file ({error}); fetch the file again.") from None


def save(volume: Volume, path: Path) -> None:
    """Write a .nii.gz file; equal volumes give equal bytes. 64-bit and boolean voxels are narrowed
    losslessly.
    """
    import nibabel

    voxels = _narrow(volume.voxels)
    image = nibabel.Nifti1Image(voxels, volume.affine)
    if volume.scale is not None:
        image.header.set_slope_inter(*volume.scale)
    image.header.set_xyzt_units("mm")
    image.set_qform(volume.affine, code=1)
    image.set_sform(volume.affine, code=1)
    nibabel.save(image, path)


def _narrow(voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if voxels.dtype == np.bool_:
        return voxels.astype(np.uint8)
    if voxels.dtype.kind in "iu" and voxels.dtype.itemsize == 8:
        kind = np.int32 if np.abs(voxels).max(initial=0) < 2**31 else np.float64
        return voxels.astype(kind)
    return voxels


def _from_itk(image: Any) -> Volume:
    import SimpleITK

    array = SimpleITK.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)[0]
    return Volume(voxels=array.T, affine=_affine(image.GetSpacing(), image.GetOrigin(), image.GetDirection()))


def _affine(spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]) -> Any:
    """Return the RAS affine of what ITK says, of its first three axes."""
    affine, axes = np.eye(4), len(spacing)
    turn = np.reshape(direction, (axes, axes)) * np.asarray(spacing)
    used = min(axes, 3)
    affine[:used, :used], affine[:used, 3] = turn[:used, :used], origin[:used]
    return _LPS_TO_RAS @ affine


def _last_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1].strip()
