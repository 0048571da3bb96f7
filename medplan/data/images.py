"""Scans and label maps in and out of files. The only place that knows SimpleITK's x, y, z order.

SimpleITK reads volumes and the grids of NIfTI files, whose voxels are read by `medplan.data.nifti`; nibabel
helps where SimpleITK refuses a sheared affine. Pictures are read by Pillow (see `medplan.data.pictures`),
DICOM series by SimpleITK's GDCM reader. All are imported when a file is opened, so that importing this module
costs nothing.
"""

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from medplan.data import dicom, nifti, pictures
from medplan.data.formats import IMAGE_ENDINGS, PICTURE_ENDINGS, VOLUME_ENDINGS, ending_of, stem_of
from medplan.data.geometry import Geometry
from medplan.errors import DataError

__all__ = [
    "Geometry",
    "Image",
    "as_label",
    "fit_channels",
    "label_file",
    "read_geometry",
    "read_image",
    "read_label",
    "read_stored",
    "write_image",
    "write_label",
]

Array = npt.NDArray[Any]

INTEGER_TOLERANCE = 1e-4
"""Label values stored as floats may miss an integer by this much (scaling by a float32 slope does that)."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Image:
    """One scan: array (C, Z, Y, X) on a grid. Pictures have Z = 1, RGB pictures C = 3."""

    array: Array
    geometry: Geometry


def read_geometry(path: Path) -> Geometry:
    """Read the grid of a file from its header; of a DICOM folder by reading the series.

    Raises: DataError if there is no such file or it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return read_stored(path)[1]
    if _is_picture(path):
        return Geometry(shape=(1, *pictures.size(path)), spacing_mm=None)
    _expect_file(path)
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if ending_of(path) not in nifti.ENDINGS:
            raise _unreadable(path, error) from None
        spacing, origin, direction, size = nifti.nearest_grid(path)
        logger.warning("%s: its axes are not perpendicular; the nearest grid whose axes are is used", path)
        return _geometry(path, size, spacing, origin, direction)
    return _geometry(path, reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def read_image(
    paths: Sequence[Path], *, channels: int | None = None, dtype: npt.DTypeLike | None = np.float32
) -> Image:
    """Read one scan.

    Args:
        paths: one file per channel, in order; or one file that holds all channels (an RGB picture, a 4-D
            volume with the channels last); or one DICOM folder.
        channels: expected number; None accepts what is there. A grey picture is repeated, and an RGB picture
            whose three channels are equal is taken once, where that gives the expected number.
        dtype: of the array; None keeps what is stored (of several files the common type).

    Returns: array (C, Z, Y, X) on the grid of the first file.
    Raises: DataError if a file is missing, truncated or unreadable, if the files do not share one shape, or
        if the number of channels is not the expected one.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise TypeError("paths should be a sequence of paths")
    parts: list[Array] = []
    geometry: Geometry | None = None
    for path in map(Path, paths):
        array, found = read_stored(path)
        if geometry is not None and found.shape != geometry.shape:
            raise DataError(
                f"{path}: its shape (z, y, x) {found.shape} differs from {geometry.shape} of {paths[0]}; all "
                "channels of a case should lie on one grid."
            )
        geometry = geometry or found
        parts.append(array if dtype is None else array.astype(dtype, copy=False))
    if geometry is None:
        raise DataError("There are no image files to read.")
    array = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if channels is not None:
        array = fit_channels(array, channels, Path(paths[0]))
    return Image(array=array, geometry=geometry)


def read_label(path: Path) -> tuple[npt.NDArray[np.integer], Geometry]:
    """Read a label map.

    Returns: integers (Z, Y, X) of the smallest fitting type, and the grid. Palette pictures give palette
        indices, RGB pictures with equal channels one of them.
    Raises: DataError if the file cannot be read, has several channels, or holds values that are not integers.
    """
    path = Path(path)
    array, geometry = read_stored(path, label=True)
    return as_label(array, path), geometry


def as_label(array: Array, path: Path) -> npt.NDArray[np.integer]:
    """Turn what `read_stored` gave, (C, Z, Y, X), into integers (Z, Y, X); raises DataError naming `path`."""
    if len(array) > 1 and all(np.array_equal(array[0], other) for other in array[1:]):
        array = array[:1]
    if len(array) != 1:
        raise DataError(
            f"{path}: a label file should hold one value per voxel, found {len(array)}; export it as a label "
            "map."
        )
    values = array[0]
    if values.dtype.kind in "iu":
        return cast(npt.NDArray[np.integer], values)
    if values.dtype.kind == "b":
        return cast(npt.NDArray[np.integer], values.astype(np.uint8))
    rounded = np.rint(values)
    with np.errstate(invalid="ignore"):  # NaN and infinity fail the comparison
        is_integer = np.abs(values - rounded) <= INTEGER_TOLERANCE
    if not is_integer.all():
        raise DataError(
            f"{path}: label values should be integers, found {values[~is_integer].flat[0]:g}; was the label "
            "resampled with linear interpolation? Export it again, or let 'medplan fingerprint --repair' "
            "round what is nearly an integer."
        )
    kind = _integer_type(float(rounded.min(initial=0)), float(rounded.max(initial=0)), path)
    return cast(npt.NDArray[np.integer], rounded.astype(kind))


def read_stored(path: Path, *, label: bool = False) -> tuple[Array, Geometry]:
    """Read a file or a DICOM folder as (C, Z, Y, X) in the number type in which it is stored.

    Args:
        path: volume, picture, or folder with one DICOM series.
        label: whether a palette picture means its indices, not its colours.
    """
    if path.is_dir():
        return _read_itk(path, dicom.slices(path))
    _expect_file(path)
    if _is_picture(path):
        array = pictures.read(path, label=label)
        return array, Geometry(shape=(1, *array.shape[2:]), spacing_mm=None)
    if ending_of(path) not in nifti.ENDINGS:
        return _read_itk(path, None)
    array = nifti.read_voxels(path)
    return array, read_geometry(path)


def label_file(path: Path) -> Path:
    """Return the file that `write_label` writes for a path: of pictures a PNG, since JPEG changes values."""
    return path.with_name(f"{stem_of(path)}.png") if _is_picture(path) else path


def write_label(path: Path, array: npt.NDArray[np.integer], geometry: Geometry) -> Path:
    """Write a label map on the grid of its image, under a temporary name first.

    Args:
        path: ending decides the format, see `label_file`.
        array: integers (Z, Y, X), shape as in `geometry`.
        geometry: of the image that the labels belong to.

    Returns: the path that was written.
    """
    path = label_file(Path(path))
    if array.shape != geometry.shape:
        raise ValueError(f"the label has shape {array.shape}, its grid {geometry.shape}")
    values = np.asarray(array)
    if values.dtype.kind == "b" or values.dtype.itemsize > 4:
        values = values.astype(_integer_type(int(values.min(initial=0)), int(values.max(initial=0)), path))
    if _is_picture(path):
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        if low < 0 or high > 65535:
            raise DataError(f"{path}: a PNG holds 0 to 65535, the labels reach from {low} to {high}.")
        kind = np.uint8 if high <= 255 else np.uint16
        return _atomically(path, lambda temporary: pictures.write(temporary, values[None].astype(kind)))
    return _write_itk(path, values[None], geometry)


def write_image(path: Path, array: Array, geometry: Geometry) -> Path:
    """Write an image, probabilities or a flow, under a temporary name first.

    Args:
        path: ending decides the format. Pictures of 8 or 16 bits become PNG; floats cannot, they become
            .nrrd.
        array: (Z, Y, X) or (C, Z, Y, X); several channels of a volume are written as a 4-D file, channels
            last.
        geometry: grid of the array.

    Returns: the path that was written.
    """
    path = Path(path)
    array = np.asarray(array)
    channels = array if array.ndim == 4 else array[None]
    if channels.shape[1:] != geometry.shape:
        raise ValueError(f"the image has shape {channels.shape[1:]}, its grid {geometry.shape}")
    if _is_picture(path):
        stem = stem_of(path)
        if channels.dtype in (np.uint8, np.uint16) and len(channels) in (1, 3):
            path = path.with_name(f"{stem}.png")
            return _atomically(path, lambda temporary: pictures.write(temporary, channels))
        path = path.with_name(f"{stem}.nrrd")
    return _write_itk(path, channels, geometry)


def _is_picture(path: Path) -> bool:
    return ending_of(path) in PICTURE_ENDINGS


def _expect_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    if ending_of(path) not in IMAGE_ENDINGS:
        raise DataError(f"{path}: this is none of the formats that are read ({' '.join(IMAGE_ENDINGS)}).")


def _unreadable(path: Path, error: Exception) -> DataError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1].removeprefix("ITK ERROR: ") if lines else type(error).__name__
    return DataError(f"{path}: it cannot be read; is it complete? The reader says: {reason}")


def _read_itk(path: Path, slices: Sequence[str] | None) -> tuple[Array, Geometry]:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = sitk.ReadImage(str(path) if slices is None else list(slices))
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    geometry = _geometry(path, image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
        if array.ndim == 5:
            raise DataError(
                f"{path}: it has five dimensions; expected a volume with one value per voxel and channel."
            )
    return np.ascontiguousarray(array.reshape(-1, *geometry.shape)), geometry


def _geometry(
    path: Path,
    size: Sequence[int],
    spacing: Sequence[float],
    origin: Sequence[float],
    direction: Sequence[float],
) -> Geometry:
    """Make a 3-D geometry from 2-D, 3-D or 4-D header values in x, y, z order."""
    dims = len(size)
    if dims not in (2, 3, 4):
        raise DataError(f"{path}: it has {dims} dimensions; expected 2, 3, or 4 with the channels last.")
    matrix = np.eye(3)
    used = min(dims, 3)
    matrix[:used, :used] = np.array(direction).reshape(dims, dims)[:used, :used]
    x, y, z = (*size[:used], 1)[:3]
    dx, dy, dz = (float(value) for value in (*spacing[:used], 1.0)[:3])
    if not all(np.isfinite(value) and value > 0 for value in (dx, dy, dz)):
        raise DataError(f"{path}: the spacing (z, y, x) should be positive, found {(dz, dy, dx)} mm.")
    ox, oy, oz = (float(value) for value in (*origin[:used], 0.0)[:3])
    return Geometry(
        shape=(int(z), int(y), int(x)),
        spacing_mm=(dz, dy, dx),
        origin_mm=(ox, oy, oz),
        direction=tuple(float(value) for value in matrix.ravel()),
    )


def _write_itk(path: Path, channels: Array, geometry: Geometry) -> Path:
    import SimpleITK as sitk

    if ending_of(path) not in VOLUME_ENDINGS:
        raise DataError(f"{path}: this is none of the formats that are written ({' '.join(VOLUME_ENDINGS)}).")
    dz, dy, dx = geometry.spacing_mm or (1.0, 1.0, 1.0)
    volumes = []
    for channel in channels:
        volume = sitk.GetImageFromArray(np.ascontiguousarray(channel))
        volume.SetSpacing((dx, dy, dz))
        volume.SetOrigin(geometry.origin_mm)
        volume.SetDirection(geometry.direction)
        volumes.append(volume)
    image = volumes[0] if len(volumes) == 1 else sitk.JoinSeries(volumes)

    def write(temporary: Path) -> None:
        sitk.WriteImage(image, str(temporary), True)
        # The writer of NIfTI says nothing when the disk is full.
        if ending_of(path) in nifti.ENDINGS and not nifti.is_complete(temporary):
            raise DataError(f"{path}: it could not be written to its end; is the disk full?")

    return _atomically(path, write)


def _atomically(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary folder, then move what it made, the named file last (.mhd has two)."""
    folder = path.parent / f".{path.name}.{os.getpid()}.tmp"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write(folder / path.name)
        for made in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            made.replace(path.parent / made.name)
    except RuntimeError as error:
        raise DataError(
            f"{path}: it cannot be written. The writer says: {str(error).splitlines()[-1]}"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return path


def fit_channels(array: Array, channels: int, path: Path) -> Array:
    """Return (C, Z, Y, X) with the expected number of channels (see `read_image`), or raise DataError."""
    if len(array) == channels:
        return array
    if _is_picture(path):
        if channels == 1 and all(np.array_equal(array[0], other) for other in array[1:]):
            return array[:1]
        if channels == 3 and len(array) == 1:
            return np.repeat(array, 3, axis=0)
    what = "colours of a picture" if _is_picture(path) else "frames of a 4-D file"
    raise DataError(
        f"{path}: expected {channels} channel{'s' * (channels != 1)}, found {len(array)} ({what} count as "
        "channels); export the wanted ones, or declare them all under 'channel_names' in dataset.json."
    )


def _integer_type(low: float, high: float, path: Path) -> type[np.integer]:
    for kind in (np.uint8, np.int16, np.uint16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return kind
    raise DataError(f"{path}: label values reach from {low:g} to {high:g}; is this a label file?")
