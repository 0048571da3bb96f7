"""Writing preprocessed cases so that a reader never meets half of one, and equal input gives equal bytes."""

import glob
from pathlib import Path

import blosc2
import numpy as np
import numpy.typing as npt

from medplan.errors import DataError, PlanError
from medplan.machine import free_disk
from medplan.preprocess.geometry import Restoration
from medplan.records import encode, read_json, write_json
from medplan.samples.cases import Case, CaseFiles, CaseRecord

__all__ = ["read_record", "write_case", "write_extra"]

Voxel = tuple[int, int, int]

_CHUNK = (64, 64, 64)
_BLOCK = (8, 64, 64)


def write_case(
    folder: Path,
    case: Case,
    restoration: Restoration,
    *,
    digest: str,
    sources: dict[str, tuple[int, int, str]],
) -> None:
    """Write a case with NumPy arrays; its record comes last and makes it count."""
    files = CaseFiles(folder, case.id)
    files.record.unlink(missing_ok=True)
    name = glob.escape(case.id)
    # By their whole endings: other cases, whose names begin alike, may be in writing.
    kinds = ("image.b2nd", "label.b2nd", "locations.npy", "json.*", "extra-*")
    for pattern in (f"{name}.extra-*", *(f".{name}.{kind}.tmp" for kind in kinds)):
        for leftover in folder.glob(pattern):
            leftover.unlink()
    _write_volume(files.image, np.asarray(case.pixels, dtype=np.float32), blosc2.Codec.LZ4)
    if case.codes is None:
        files.label.unlink(missing_ok=True)
        files.locations.unlink(missing_ok=True)
    else:
        _write_volume(files.label, np.asarray(case.codes, dtype=np.int16), blosc2.Codec.ZSTD)
        _write_locations(files.locations, case)
    record = CaseRecord(
        id=case.id,
        shape=case.shape,
        spacing_mm=case.spacing_mm,
        is_labelled=case.codes is not None,
        codes=tuple(sorted(case.locations)),
        quantiles=tuple(tuple(map(float, channel)) for channel in case.histogram),
        digest=digest,
        sources=sources,
        restoration=encode(restoration),
    )
    write_json(record, files.record)


def write_extra(path: Path, volume: npt.NDArray[np.integer]) -> None:
    """Write a volume (Z, Y, X) of `CaseFiles.extra`."""
    _write_volume(path, volume, blosc2.Codec.ZSTD)


def read_record(folder: Path, case_id: str) -> CaseRecord | None:
    """Return the record of a case that is there completely, else None."""
    files = CaseFiles(folder, case_id)
    try:
        record = read_json(CaseRecord, files.record)
    except PlanError:
        return None
    expected = (files.image, files.label, files.locations) if record.is_labelled else (files.image,)
    return record if all(path.is_file() for path in expected) else None


def _write_volume(path: Path, array: npt.NDArray[np.generic], codec: "blosc2.Codec") -> None:
    """Write (..., Z, Y, X) compressed; on one thread, since several finish their blocks in any order."""
    temporary = path.with_name(f".{path.name}.tmp")
    leading = (1,) * (array.ndim - 3)
    z, y, x = array.shape[-3:]
    chunks = _fill(_CHUNK, (z, y, x))
    try:
        blosc2.asarray(
            np.ascontiguousarray(array),
            urlpath=str(temporary),
            mode="w",
            chunks=leading + chunks,
            blocks=leading + _fill(_BLOCK, chunks),
            cparams={
                "codec": codec,
                "clevel": 1,
                "filters": [blosc2.Filter.SHUFFLE],
                "filters_meta": [0],
                "nthreads": 1,
            },
            dparams={"nthreads": 1},
        )
    except RuntimeError as error:  # blosc2 does not say which call of the system failed
        temporary.unlink(missing_ok=True)
        free = free_disk(path.parent) / 2**20
        raise DataError(f"{path} cannot be written ({error}); {free:.0f} MiB are free on its disk.") from None
    temporary.replace(path)


def _fill(wanted: Voxel, shape: Voxel) -> Voxel:
    """Return a box of about as many voxels as wanted, wider in plane where the volume is thin."""
    z = min(wanted[0], shape[0])
    widening = (wanted[0] / z) ** 0.5
    y, x = (min(n, round(side * widening)) for n, side in zip(shape[1:], wanted[1:], strict=True))
    return z, y, x


def _write_locations(path: Path, case: Case) -> None:
    tables = [
        np.concatenate([np.full((len(voxels), 1), code, voxels.dtype), voxels], axis=1)
        for code, voxels in sorted(case.locations.items())
    ]
    table = np.concatenate(tables) if tables else np.zeros((0, 4), np.uint16)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.save(file, table)
    temporary.replace(path)
