"""Volumes on their way from a source format into NIfTI.

A `Volume` follows NIfTI itself: voxels are indexed (x, y, z) and the affine leads to RAS millimetres. Nothing
is reordered or resampled here, so that a converted file equals its source voxel by voxel.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medplan.errors import DataError

__all__ = [
    "Volume",
    "affine_of",
    "grid_of",
    "on_grid",
    "read_h5",
    "read_itk",
    "read_nifti",
    "read_series",
    "save",
    "segment_names",
    "shape_of",
]

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


def grid_of(path: Path) -> tuple[tuple[int, ...], npt.NDArray[np.float64]]:
    """Return shape and affine of a volume file. Raises: DataError if it cannot be read."""
    import nibabel

    if not path.name.lower().endswith((".nii", ".nii.gz")):
        volume = read_itk(path)
        return volume.voxels.shape, volume.affine
    shape = shape_of(path)
    return shape, np.asarray(nibabel.load(path).affine, dtype=np.float64)


def on_grid(label: Volume, shape: Sequence[int], affine: npt.NDArray[np.float64]) -> Volume:
    """Return a label that was cropped, padded or mirrored on the grid it was drawn on; no value is resampled.

    Args:
        label: voxels (X, Y, Z).
        shape, affine: the grid to put it on, (X, Y, Z) and voxel index to RAS millimetres.

    Returns: the same voxels on that grid, 0 where the label does not reach.
    Raises: ValueError in words if the grids do not share their voxels, or some of the label is outside.
    """
    shape = tuple(shape[:3])
    step = np.linalg.inv(affine) @ label.affine
    turn = np.rint(step[:3, :3])
    is_turn = (np.abs(turn).sum(axis=0) == 1).all() and (np.abs(turn).sum(axis=1) == 1).all()
    longest = max(*label.voxels.shape, *shape)
    if label.voxels.ndim != 3 or not is_turn or np.abs(step[:3, :3] - turn).max() * longest > 0.5:
        raise ValueError(f"its grid is not that of the scan, {_grid_in_words(label)} against {shape} voxels")
    voxels = label.voxels.transpose(np.abs(turn).argmax(axis=1))
    signs = turn.sum(axis=1)
    voxels = voxels[tuple(slice(None, None, int(sign)) for sign in signs)]
    # where the first voxel of the turned label lies: a mirrored axis begins with the label's last voxel
    corner = np.where(turn.T < 0, np.array(label.voxels.shape)[:, None] - 1, 0).sum(axis=1)
    start = step[:3, :3] @ corner + step[:3, 3]
    offset = np.rint(start).astype(int)
    if np.abs(start - offset).max() > 0.25:
        raise ValueError(
            f"it lies between the voxels of the scan, {np.abs(start - offset).max():.2f} voxels off"
        )
    result = np.zeros(shape, dtype=voxels.dtype)
    low, high = np.maximum(offset, 0), np.minimum(offset + voxels.shape, shape)
    if (low >= high).any():
        raise ValueError("it lies outside of the scan")
    inner = tuple(slice(a, b) for a, b in zip(low - offset, high - offset, strict=True))
    result[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = voxels[inner]
    if np.count_nonzero(result) < np.count_nonzero(voxels):
        raise ValueError("a part of it lies outside of the scan")
    return Volume(voxels=result, affine=affine)


def _grid_in_words(volume: Volume) -> str:
    spacing = ", ".join(f"{value:.3g}" for value in np.linalg.norm(volume.affine[:3, :3], axis=0))
    return f"{volume.voxels.shape} voxels of {spacing} mm"


def segment_names(path: Path) -> dict[int, str]:
    """Return the names of label values that 3D Slicer wrote into a .seg.nrrd file, else nothing."""
    if not path.name.lower().endswith(".nrrd"):
        return {}
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    keys = [key for key in reader.GetMetaDataKeys() if key.endswith("_LabelValue")]
    stems = {key: key.removesuffix("_LabelValue") + "_Name" for key in keys}
    return {
        int(reader.GetMetaData(key)): reader.GetMetaData(name)
        for key, name in stems.items()
        if reader.HasMetaDataKey(name) and reader.GetMetaData(key).isdigit()
    }


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

    series = SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise DataError(f"{folder}: expected the slices of one DICOM series, found {len(series)} series.")
    files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    try:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(files)
        return _from_itk(reader.Execute()), tuple(Path(file) for file in files)
    except RuntimeError as error:
        raise DataError(f"{folder}: the DICOM series cannot be read ({_last_line(error)}).") from None


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
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return Volume(voxels=array.T, affine=_LPS_TO_RAS @ affine)


def _last_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1].strip()
