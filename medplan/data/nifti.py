"""What SimpleITK does not do for NIfTI files: notice truncation, and read affines that are sheared."""

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medplan.errors import DataError

__all__ = ["ENDINGS", "read_with_nibabel", "refuse_truncated"]

ENDINGS = (".nii", ".nii.gz")


def refuse_truncated(path: Path) -> None:
    """Raise DataError if a NIfTI file is shorter than its header promises.

    SimpleITK fills the missing part with arbitrary values and says nothing. A gzip file ends with the length
    of its content, so that one look at the header and one at the end suffice; only where these disagree
    (truncated, or written in several pieces) is the file read through.
    """
    is_compressed = path.name.lower().endswith(".gz")
    try:
        if is_compressed:
            with gzip.open(path) as stream:
                expected = _promised_bytes(stream.read(540))
        else:
            with path.open("rb") as plain:
                expected = _promised_bytes(plain.read(540))
        found = _gzip_length(path, expected) if is_compressed else path.stat().st_size
    except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
        raise DataError(
            f"{path}: the file is truncated or damaged ({error}); copy or download it again."
        ) from None
    if expected is None:
        raise DataError(f"{path}: this is not a NIfTI file, or its header is damaged.")
    if found < expected:
        raise DataError(
            f"{path}: the file is truncated: its header promises {expected} bytes, found {found}; copy or "
            "download "
            "it again."
        )


def read_with_nibabel(
    path: Path,
) -> tuple[npt.NDArray[Any], tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Read what SimpleITK refuses; axes that are not perpendicular are replaced by the nearest that are.

    Returns: array (C, Z, Y, X), spacing (x, y, z) mm, origin (x, y, z) mm LPS, direction (9, row-major, LPS).
    """
    import nibabel

    image: Any = nibabel.load(path)
    slope, offset = image.dataobj.slope, image.dataobj.inter
    scaled = (slope, offset) != (1.0, 0.0)
    array = np.asanyarray(image.dataobj if scaled else image.dataobj.get_unscaled())
    array = array.astype(np.float32 if array.dtype.kind == "f" else array.dtype.newbyteorder("="), copy=False)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 5 and array.shape[3] == 1:
        array = array[:, :, :, 0, :]
    array = array.reshape(array.shape + (1,) * (4 - array.ndim))
    lps = np.diag([-1.0, -1.0, 1.0]) @ image.affine[:3, :3]
    spacing = np.linalg.norm(lps, axis=0)
    left, _, right = np.linalg.svd(lps / spacing)
    origin = np.diag([-1.0, -1.0, 1.0]) @ image.affine[:3, 3]
    return (
        np.ascontiguousarray(array.transpose(3, 2, 1, 0)),
        tuple(spacing.tolist()),
        tuple(origin.tolist()),
        tuple((left @ right).ravel().tolist()),
    )


def _promised_bytes(header: bytes) -> int | None:
    """Return offset plus size of the voxels of NIfTI-1 or -2, either byte order; None if it is neither."""
    if len(header) < 348:
        return None
    for order in "<>":
        (size,) = struct.unpack_from(f"{order}i", header, 0)
        if size == 348:
            dims = struct.unpack_from(f"{order}8h", header, 40)
            (bits,) = struct.unpack_from(f"{order}h", header, 72)
            (offset,) = struct.unpack_from(f"{order}f", header, 108)
        elif size == 540 and len(header) >= 540:
            dims = struct.unpack_from(f"{order}8q", header, 16)
            (bits,) = struct.unpack_from(f"{order}h", header, 14)
            (offset,) = struct.unpack_from(f"{order}q", header, 168)
        else:
            continue
        voxels = 1
        for length in dims[1 : 1 + dims[0]]:
            voxels *= max(int(length), 1)
        return int(offset) + voxels * int(bits) // 8
    return None


def _gzip_length(path: Path, expected: int | None) -> int:
    with path.open("rb") as stream:
        stream.seek(-4, 2)
        (length,) = struct.unpack("<I", stream.read(4))
    if expected is not None and length == expected % 2**32:
        return expected
    total = 0
    with gzip.open(path) as content:
        while piece := content.read(1 << 20):
            total += len(piece)
    return total
