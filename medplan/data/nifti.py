"""NIfTI voxels, read with zlib and NumPy; the grid is SimpleITK's business (see `medplan.data.images`).

SimpleITK's reader fills the missing part of a truncated file with arbitrary values and turns NaN into 0, both
without a word. Here the former is an error and the latter is kept, so that it can be found; it also takes
half the memory.
"""

import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medplan.errors import DataError

__all__ = ["ENDINGS", "is_complete", "nearest_grid", "read_voxels"]

ENDINGS = (".nii", ".nii.gz")
PIECE = 1 << 20
GZIP = b"\x1f\x8b"
LONGEST_HEADER = 544
"""Bytes of a header of NIfTI-2 with the mark for extensions."""

TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is needed to read the voxels: lengths (x, y, z, ...), number type, first byte, and scaling."""

    lengths: tuple[int, ...]
    kind: str
    offset: int
    slope: float
    intercept: float

    @property
    def is_scaled(self) -> bool:
        usable = np.isfinite(self.slope) and np.isfinite(self.intercept) and self.slope != 0
        return bool(usable and (self.slope, self.intercept) != (1.0, 0.0))


def read_voxels(path: Path) -> npt.NDArray[Any]:
    """Read (C, Z, Y, X) in the stored number type, or float32 where the header scales the numbers.

    Raises: DataError if the file is truncated, damaged (the checksum is verified), no NIfTI file, of a number
        type that is no number (complex, colours), or of more dimensions than channels, z, y and x.
    """
    pieces = _pieces(path)
    try:
        start = _beginning(pieces)
        header = _parsed(start, path)
        shape = _shape(header, path)
        try:
            array = np.empty(shape, dtype=header.kind)
        except (MemoryError, ValueError):
            raise DataError(
                f"{path}: its header promises {header.lengths} voxels, more than fit into memory; it may be "
                "damaged, copy or download it again."
            ) from None
        # Voxels go straight from the decompressor into the array: one copy of the volume in all.
        target = array.reshape(-1).view(np.uint8)
        filled = _fill(target, 0, start[header.offset :])
        skip = max(0, header.offset - len(start))
        for piece in pieces:
            filled = _fill(target, filled, piece[skip:])
            skip = max(0, skip - len(piece))
    except (zlib.error, OSError) as error:
        raise DataError(f"{path}: the file is damaged ({error}); copy or download it again.") from None
    if filled < len(target):
        raise DataError(
            f"{path}: the file is truncated: its header promises {len(target)} bytes of voxels, found "
            f"{filled}; copy or download it again."
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return _scaled(array, header) if header.is_scaled else array


def is_complete(path: Path) -> bool:
    """Return whether a file that was written is as long as its header promises; the voxels are not read."""
    header = _parsed(_beginning(_pieces(path)), path)
    promised = header.offset + math.prod(header.lengths) * np.dtype(header.kind).itemsize
    with path.open("rb") as stream:
        is_compressed = stream.read(2) == GZIP
        length = stream.seek(0, os.SEEK_END)
        if not is_compressed:
            return length >= promised
        # gzip ends with the length of what it packed.
        stream.seek(length - 4)
        return int.from_bytes(stream.read(4), "little") == promised % 2**32


def nearest_grid(
    path: Path,
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[int, ...]]:
    """Return the grid of a file whose axes are not perpendicular: the nearest one whose axes are.

    Returns: spacing (x, y, z) mm, origin (x, y, z) mm LPS, direction (9, row-major, LPS), size (x, y, z).
    Raises: DataError if the header is damaged.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        image: Any = nibabel.load(path)
    except (ImageFileError, HeaderDataError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: it cannot be read as NIfTI ({error}); copy or download it again.") from None
    to_lps = np.diag([-1.0, -1.0, 1.0])
    axes = to_lps @ image.affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    if not (np.isfinite(image.affine).all() and (spacing > 0).all()):
        raise DataError(f"{path}: its affine is not usable: {np.round(image.affine, 3).tolist()}.")
    left, _, right = np.linalg.svd(axes / spacing)
    size = (*image.shape[:3], 1, 1)[:3]
    origin = to_lps @ image.affine[:3, 3]
    return tuple(spacing.tolist()), tuple(origin.tolist()), tuple((left @ right).ravel().tolist()), size


def _beginning(pieces: Iterator[bytes]) -> bytes:
    """Take so many pieces of a file that they hold its header, or all of them."""
    start = bytearray()
    while len(start) < LONGEST_HEADER and (piece := next(pieces, None)) is not None:
        start += piece
    return bytes(start)


def _pieces(path: Path) -> Iterator[bytes]:
    """Yield the content of a plain or gzip file; zlib verifies the checksum of each gzip member."""
    with path.open("rb") as stream:
        is_compressed = stream.read(2) == GZIP
        stream.seek(0)
        if not is_compressed:
            while piece := stream.read(PIECE):
                yield piece
            return
        member: Any = None
        while stored := stream.read(PIECE):
            while stored:
                if member is None:
                    # Zeros may pad the end of a file; anything else is a further member.
                    if not stored.strip(b"\x00"):
                        break
                    member = zlib.decompressobj(wbits=31)
                # A label map can be a thousand times larger than its file: never more than a piece at once.
                yield member.decompress(stored, PIECE)
                stored = member.unconsumed_tail
                if member.eof:
                    stored, member = member.unused_data, None
        if member is not None:
            yield member.flush()
            if not member.eof:
                raise zlib.error("its end is missing")


def _fill(target: npt.NDArray[np.uint8], filled: int, piece: bytes) -> int:
    part = np.frombuffer(piece, dtype=np.uint8)[: len(target) - filled]
    target[filled : filled + len(part)] = part
    return filled + len(part)


def _shape(header: Header, path: Path) -> tuple[int, int, int, int]:
    x, y, z = (*header.lengths, 1, 1, 1)[:3]
    further = [length for length in header.lengths[3:] if length > 1]
    if len(further) > 1:
        raise DataError(
            f"{path}: it has {len(header.lengths)} dimensions, {header.lengths}; expected a volume, or 4-D "
            "with the channels last."
        )
    return (further[0] if further else 1), z, y, x


def _scaled(array: npt.NDArray[Any], header: Header) -> npt.NDArray[np.float32]:
    result = np.empty(array.shape, dtype=np.float32)
    for scaled, volume in zip(result, array, strict=True):
        for number, plane in enumerate(volume):
            scaled[number] = plane.astype(np.float64) * header.slope + header.intercept
    return result


def _parsed(data: bytes, path: Path) -> Header:
    """Read a header of NIfTI-1 or NIfTI-2 in either byte order."""
    order = next(
        (order for order in "<>" if data[:4] in (struct.pack(f"{order}i", n) for n in (348, 540))), None
    )
    second = order is not None and data[:4] == struct.pack(f"{order}i", 540)
    if order is None or len(data) < (540 if second else 348):
        raise DataError(f"{path}: this is not a NIfTI file, or it is truncated in its header.")

    def at(form: str, first: int, other: int) -> tuple[Any, ...]:
        return struct.unpack_from(order + form, data, other if second else first)

    dims = at("8q" if second else "8h", 40, 16)
    (code,) = at("h", 70, 12)
    (offset,) = at("q" if second else "f", 108, 168)
    slope, intercept = at("2d" if second else "2f", 112, 176)
    if not 1 <= dims[0] <= 7 or min(dims[1 : 1 + dims[0]]) < 1:
        raise DataError(f"{path}: its header is damaged: the dimensions are {dims}.")
    if code not in TYPES:
        raise DataError(
            f"{path}: number type {code} of NIfTI (complex or colour) is not read; export plain numbers."
        )
    return Header(
        lengths=tuple(int(length) for length in dims[1 : 1 + dims[0]]),
        kind=order + TYPES[code],
        offset=int(offset),
        slope=float(slope),
        intercept=float(intercept),
    )
