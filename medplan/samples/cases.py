"""Preprocessed cases as training and prediction see them: patches are read, volumes are not.

Beside each other in one folder lie, per case, ``<id>.image.b2nd`` (C, Z, Y, X) float32, ``<id>.label.b2nd``
(Z, Y, X) int16, ``<id>.locations.npy`` (n, 4) of code, z, y, x, and ``<id>.json``, a `CaseRecord`, which is
written last.

Volumes are stored in compressed chunks of about 64^3 voxels, images with LZ4 and labels with Zstandard.
Measured on a left-atrium scan of 140x224x292 voxels, one core, warm files: a patch of 96x128x192 takes 4.2 ms
with LZ4 (31 MB on disk), 6.7 ms with Zstandard (29 MB) and 0.6 ms from an uncompressed memory map (37 MB);
its label map takes 0.7 ms, and 0.1 MB in place of 18 MB. Cropping is a small part of a training step, label
maps and masked scans shrink several times, and a cold read touches whole chunks instead of one page per row.
Pixels stay float32: half precision would halve the files, but lose the last Hounsfield units of a wide
window.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medplan.errors import DataError, MethodError, PlanError
from medplan.records import read_json
from medplan.samples.histogram import quantiles

if TYPE_CHECKING:
    from medplan.plan.schema import DatasetPlan, Fold, Plan

__all__ = ["Case", "CaseFiles", "CaseRecord", "CaseStore", "open_case"]

Voxel = tuple[int, int, int]

_NUM_OPEN = 64


@dataclass(frozen=True, kw_only=True)
class Case:
    """One preprocessed case.

    Attributes:
        key: ``<dataset>/<id>``.
        pixels: (C, Z, Y, X) float32, sliceable; a NumPy array in memory or a chunked array on disk.
        codes: (Z, Y, X) int16 of the dataset's `LabelSpace`, sliceable; None when the case has no label.
        spacing_mm: (z, y, x) of the preprocessed grid; None for pictures.
        locations: per code some voxels (n, 3) that carry it, for over-sampling; empty without a label.
        domain: scanner, centre, vendor or modality the case comes from, if the dataset says.
        prompts: what a user gave with the image (boxes in voxels of the preprocessed grid), by name.
        extra: further sliceable volumes (Z, Y, X) that a method asked to be preprocessed, by name.
        quantiles: of a stored case, so that its histogram is known without reading it.
    """

    key: str
    pixels: Any
    codes: Any | None = None
    spacing_mm: tuple[float, float, float] | None = None
    locations: Mapping[int, npt.NDArray[np.integer]] = field(default_factory=dict)
    domain: str | None = None
    prompts: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    quantiles: npt.NDArray[np.float32] | None = None

    @property
    def dataset(self) -> str:
        return self.key.split("/", 1)[0]

    @property
    def id(self) -> str:
        return self.key.split("/", 1)[1]

    @property
    def shape(self) -> Voxel:
        z, y, x = self.pixels.shape[1:]
        return int(z), int(y), int(x)

    @property
    def histogram(self) -> npt.NDArray[np.float32]:
        """(C, 33): see `medplan.samples.histogram.quantiles`."""
        return quantiles(self.image()) if self.quantiles is None else self.quantiles

    def image(self, lower: Voxel | None = None, upper: Voxel | None = None) -> npt.NDArray[np.float32]:
        """Return (C, *upper - lower) float32, 0 outside the case. Without a box, the whole case."""
        return np.asarray(_cut(self.pixels, self.shape, lower, upper), dtype=np.float32)

    def label(self, lower: Voxel | None = None, upper: Voxel | None = None) -> npt.NDArray[np.int16]:
        """Return (*upper - lower) codes, 0 outside the case. Raises MethodError without a label."""
        if self.codes is None:
            raise MethodError(f"case '{self.key}' has no label, but one is asked for; give it another role.")
        return np.asarray(_cut(self.codes, self.shape, lower, upper), dtype=np.int16)

    def volume(
        self, name: str, lower: Voxel | None = None, upper: Voxel | None = None
    ) -> npt.NDArray[np.generic]:
        """Return (*upper - lower) of an extra volume, 0 outside the case. Raises MethodError without it."""
        try:
            volume = self.extra[name]
        except KeyError:
            raise MethodError(
                f"case '{self.key}' has no volume '{name}'; plan and preprocess it again."
            ) from None
        if tuple(volume.shape) != self.shape:
            raise MethodError(
                f"case '{self.key}': the volume '{name}' has shape {tuple(volume.shape)} and the image "
                f"{self.shape}; preprocess again."
            )
        return _cut(volume, self.shape, lower, upper)


@dataclass(frozen=True, kw_only=True)
class CaseRecord:
    """What is known about a preprocessed case without opening its volumes.

    Attributes:
        id: the case's id in its dataset.
        shape: voxels (z, y, x) of the preprocessed grid.
        spacing_mm: (z, y, x); None for pictures.
        is_labelled: whether there is a label map.
        codes: codes above 0 that occur in it.
        quantiles: per channel, see `medplan.samples.histogram.quantiles`.
        digest: of the plan's facts and the content of the source files.
        sources: per source file its bytes, time of change in ns, and digest.
        restoration: a `medplan.preprocess.geometry.Restoration` as plain data.
    """

    id: str
    shape: Voxel
    spacing_mm: tuple[float, float, float] | None
    is_labelled: bool
    codes: tuple[int, ...]
    quantiles: tuple[tuple[float, ...], ...]
    digest: str
    sources: dict[str, tuple[int, int, str]]
    restoration: dict[str, Any]


@dataclass(frozen=True)
class CaseFiles:
    """Where one preprocessed case lies."""

    folder: Path
    id: str

    @property
    def record(self) -> Path:
        return self.folder / f"{self.id}.json"

    @property
    def image(self) -> Path:
        return self.folder / f"{self.id}.image.b2nd"

    @property
    def label(self) -> Path:
        return self.folder / f"{self.id}.label.b2nd"

    @property
    def locations(self) -> Path:
        return self.folder / f"{self.id}.locations.npy"

    def extra(self, name: str, numbers: Mapping[str, Any]) -> Path:
        """Return where the extra volume lies that was made with these numbers."""
        facts = json.dumps(numbers, sort_keys=True)
        digest = hashlib.blake2b(facts.encode(), digest_size=4).hexdigest()
        return self.folder / f"{self.id}.extra-{name}-{digest}.b2nd"


def open_case(
    folder: Path,
    key: str,
    *,
    domain: str | None = None,
    with_label: bool = True,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
) -> Case:
    """Open a preprocessed case; volumes are not read.

    Args:
        extra: further volumes by name, with the numbers they were made with (`DatasetPlan.extra`).
        with_label: False leaves the label and its locations closed, as if the case had none.

    Raises: PlanError if it is not there.
    """
    files = CaseFiles(folder, key.split("/", 1)[-1])
    if not files.record.is_file():
        raise PlanError(_missing([key], folder))
    try:
        record = read_json(CaseRecord, files.record)
    except PlanError as error:  # cut short, or of another version
        raise PlanError(f"{error} Run 'medplan preprocess' to prepare the case again.") from None
    locations: dict[int, npt.NDArray[np.integer]] = {}
    is_labelled = record.is_labelled and with_label
    if is_labelled:
        table = np.load(files.locations)
        # Rows are sorted by code, so that each code is one slice.
        starts = np.searchsorted(table[:, 0], [*record.codes, np.iinfo(np.int32).max])
        for code, start, stop in zip(record.codes, starts, starts[1:], strict=False):
            locations[code] = table[start:stop, 1:]
    return Case(
        key=key,
        pixels=_open_volume(files.image),
        codes=_open_volume(files.label) if is_labelled else None,
        spacing_mm=record.spacing_mm,
        locations=locations,
        domain=domain,
        extra={name: _open_volume(files.extra(name, numbers)) for name, numbers in (extra or {}).items()},
        quantiles=np.array(record.quantiles, np.float32),
    )


class CaseStore:
    """The cases of one fold of a plan, by role. Cheap to pickle: it opens files when they are read."""

    def __init__(self, folders: Mapping[str, Path], plan: "Plan", fold: "Fold" = 0) -> None:
        """Look up the cases of a fold.

        Args:
            folders: per dataset of the plan its folder of preprocessed cases.
            plan: says which case has which role.
            fold: which of its folds, or 'all'.

        Raises: PlanError if a dataset has no folder, or a case of the fold (role `test` apart) is not
            preprocessed.
        """
        self._folders = {name: Path(folder) for name, folder in folders.items()}
        self._plan = plan
        self._roles = plan.roles(fold)
        self._opened: OrderedDict[str, Case] = OrderedDict()
        for dataset in plan.datasets:
            if dataset.name not in self._folders:
                raise PlanError(
                    f"the plan '{plan.name}' needs the dataset '{dataset.name}', which was not given."
                )
        missing: dict[Path, list[str]] = {}
        for key in self.all_keys():
            files = self._files(key)
            wanted = [
                files.record,
                files.image,
                *(files.extra(name, numbers) for name, numbers in self.plan_of(key).extra.items()),
            ]
            if key not in self.role("test") and not all(path.is_file() for path in wanted):
                missing.setdefault(files.folder, []).append(key)
        for folder, keys in missing.items():
            raise PlanError(_missing(keys, folder))

    def role(self, name: str) -> tuple[str, ...]:
        """Return the keys of the cases with that role in the fold; empty if there are none."""
        return self._roles.get(name, ())

    def all_keys(self) -> tuple[str, ...]:
        """Return the keys of all cases of the fold, each once, in the order of the plan."""
        return tuple(dict.fromkeys(key for keys in self._roles.values() for key in keys))

    def __getitem__(self, key: str) -> Case:
        """Open a case (header only; nothing is decompressed).

        A case whose role in the fold is `unlabelled` has no label here, even if there is one on disk.
        """
        if key in self._opened:
            self._opened.move_to_end(key)
            return self._opened[key]
        plan = self.plan_of(key)
        domain = plan.domains.get(key.split("/", 1)[1])
        is_hidden = key in self.role("unlabelled")
        case = open_case(
            self._folders[plan.name], key, domain=domain, with_label=not is_hidden, extra=plan.extra
        )
        self._opened[key] = case
        if len(self._opened) > _NUM_OPEN:
            self._opened.popitem(last=False)
        return case

    def plan_of(self, key: str) -> "DatasetPlan":
        """Return the dataset plan that a case belongs to. Raises PlanError if there is none."""
        name = key.split("/", 1)[0]
        if "/" not in key or name not in self._folders:
            raise PlanError(
                f"there is no case '{key}'; keys are '<dataset>/<id>' of {sorted(self._folders)}."
            )
        return self._plan.dataset(name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict()}

    def _files(self, key: str) -> CaseFiles:
        name, case = key.split("/", 1)
        return CaseFiles(self._folders[name], case)


def _open_volume(path: Path) -> Any:
    import blosc2

    # One thread: loader workers are parallel already, and a forked thread pool hangs.
    try:
        return blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{path}: this preprocessed file is missing or damaged ({error}). Delete it; the same command "
            "then prepares the case again."
        ) from None


def _cut(array: Any, shape: Voxel, lower: Voxel | None, upper: Voxel | None) -> npt.NDArray[Any]:
    """Copy a box out of the last three axes of a sliceable array, 0 where it reaches beyond."""
    lower, upper = lower or (0, 0, 0), upper or shape
    leading: tuple[Any, ...] = (slice(None),) * (len(array.shape) - 3)
    sizes = (*array.shape[:-3], *(high - low for low, high in zip(lower, upper, strict=True)))
    inner = [slice(max(0, low), min(n, high)) for low, high, n in zip(lower, upper, shape, strict=True)]
    if any(part.start >= part.stop for part in inner):
        return np.zeros(sizes, dtype=array.dtype)
    # A slice of a NumPy array is a view, and callers change their patches; chunked arrays return copies.
    part = np.array(array[leading + tuple(inner)], copy=isinstance(array, np.ndarray) or None)
    if part.shape == sizes:
        return part
    result = np.zeros(sizes, dtype=array.dtype)
    result[
        leading + tuple(slice(cut.start - low, cut.stop - low) for cut, low in zip(inner, lower, strict=True))
    ] = part
    return result


def _missing(keys: list[str], folder: Path) -> str:
    named = ", ".join(f"'{key}'" for key in keys[:5]) + (
        f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    )
    verb = "is" if len(keys) == 1 else "are"
    return f"{named} {verb} not preprocessed in {folder}; run 'medplan preprocess' first."
