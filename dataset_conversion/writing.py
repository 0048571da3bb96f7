"""Write a raw dataset, one case after the other and dataset.json last.

An interrupted conversion goes on where it stopped. A target folder that holds anything else is never touched.
"""

import gzip
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dataset_conversion.card import Card
from dataset_conversion.pictures import read_picture, save_picture
from dataset_conversion.volumes import Volume, read_itk, read_nifti, save, shape_of
from medplan.errors import DataError
from medplan.progress import track
from medplan.records import write_text

__all__ = ["Case", "Conclude", "LeftOut", "Source", "in_threads", "write_dataset"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOG = logging.getLogger(__name__)
_FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs", "imagesUnlabeled")
_UNFINISHED = ".conversion.json"
_TEMPORARY = ".writing."
_THREADS = 4
_LOGGED = 10
_NIFTI = (".nii", ".nii.gz", ".mgz")
_ITK = (".nrrd", ".mha", ".mhd")

Source = Path | Callable[[], Volume | npt.NDArray[Any]]
"""A file that is taken over byte by byte where its format allows it, or a function that returns a volume or a
picture (Y, X) or (Y, X, 3)."""

Conclude = Callable[[Mapping[str, Collection[int]], Sequence[str]], tuple[Mapping[str, Any], Sequence[str]]]
"""Takes the values that occur in the label of each case, and why labels were left out; returns the labels to
declare and the notes."""


class LeftOut(Exception):
    """A label cannot be used, and its case is unlabelled; the message is a note."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case of the dataset to be written.

    Attributes:
        id: letters, digits, ``-`` and ``_``; unique.
        images: one per channel; a colour picture is one image with three channels.
        label: None for an unlabelled case; a function may raise `LeftOut`.
        values: how label values of the source become those of the dataset; None leaves them as they are.
        domain: scanner, sequence, centre or vendor, where the dataset has several.
        patient: cases of one patient never fall on both sides of a split.
        is_test: part of the official test set.
        is_open: a label may still join it, so that the image lies in imagesTr even while it has none.
    """

    id: str
    images: tuple[Source, ...]
    label: Source | None = None
    values: Mapping[int, int] | None = None
    domain: str | None = None
    patient: str | None = None
    is_test: bool = False
    is_open: bool = False


def write_dataset(
    card: Card,
    cases: Iterable[Case],
    target: Path,
    *,
    source: Path,
    labels: Mapping[str, int] | Conclude | None = None,
    channels: Sequence[str] | None = None,
    ending: str = ".nii.gz",
    only_present: bool = False,
    splits: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    notes: Sequence[str] = (),
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the cases into `target` in nnU-Net's raw layout; dataset.json appears when everything is there.

    Args:
        labels, channels: where they differ from the card's; labels may be known only when all were written.
        ending: file ending of images and labels, ``.nii.gz`` or ``.png``.
        only_present: declare only those labels that occur in the label files.
        splits: published splits, role to case ids, where they differ from the card's.
        notes: what a reader of the dataset should know, one sentence each; logged and kept in dataset.json.
        more: further keys of dataset.json.

    Raises: DataError if `target` holds other files or lies inside `source`, if an image and its label differ
        in shape, or if a label has values that `labels` does not declare.
    """
    cases = sorted(cases, key=lambda case: case.id)
    conclude = labels if callable(labels) else None
    declared = None if callable(labels) else card.labels if labels is None else labels
    channels = tuple(channels or card.channels)
    _check_ids(cases)
    _check_target(card, cases, target, source=source, ending=ending)
    resumed = not (target / "dataset.json").exists()
    present: dict[str, set[int]] = {}
    left_out: list[str] = []
    write = partial(_write_case, target=target, declared=declared, ending=ending, keep=resumed)
    for number, written in enumerate(in_threads(write, cases, label=f"converting {card.name}")):
        if isinstance(written, LeftOut):
            left_out.append(str(written))
            cases[number] = replace(cases[number], label=None)
        elif cases[number].label is not None:
            present[cases[number].id] = written
    if conclude is not None:
        declared, notes = conclude(present, left_out)
    named = dict(declared or {})
    if only_present:
        named = {name: value for name, value in named.items() if value in set().union(*present.values())}
    for note in notes[:_LOGGED]:
        _LOG.warning("%s: %s", card.name, note)
    if len(notes) > _LOGGED:
        _LOG.warning("%s: and %d more notes in dataset.json", card.name, len(notes) - _LOGGED)
    description = _description(card, cases, labels=named, channels=channels, ending=ending)
    published = _splits_of(cases, card.published_splits if splits is None else splits)
    description |= {"splits": published} if published else {}
    description |= {"notes": list(notes)} if notes else {}
    description |= more or {}
    write_text(json.dumps(description, indent=1) + "\n", target / "dataset.json")
    _tidy(target)


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], *, label: str) -> Iterator[Result]:
    """Yield ``work(item)`` in the order of `items`, several at a time; the first error stops the rest."""
    pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    try:
        yield from track(pool.map(work, items), label=label, total=len(items))
    finally:
        pool.shutdown(cancel_futures=True)


def _tidy(target: Path) -> None:
    """Remove what marks an unfinished conversion, and the temporary files of a killed one."""
    for folder in _FOLDERS:
        for path in (target / folder).glob(f"{_TEMPORARY}*"):
            path.unlink()
    (target / _UNFINISHED).unlink(missing_ok=True)


def _files(case: Case, ending: str) -> tuple[tuple[str, ...], str | None]:
    """Return where the images and the label of a case belong, relative to the target."""
    part = "Ts" if case.is_test else "Tr" if case.label is not None or case.is_open else "Unlabeled"
    images = tuple(f"images{part}/{case.id}_{channel:04d}{ending}" for channel in range(len(case.images)))
    return images, f"labels{part}/{case.id}{ending}" if case.label is not None else None


def _check_ids(cases: Sequence[Case]) -> None:
    seen: set[str] = set()
    for case in cases:
        if case.id in seen:
            raise DataError(
                f"two cases would both be called '{case.id}'; remove one of them from the source."
            )
        if not case.id.replace("-", "").replace("_", "").isalnum() or not case.id.isascii():
            raise DataError(
                f"'{case.id}' cannot be a case id; rename its files to letters, digits, '-' and '_'."
            )
        seen.add(case.id)


def _check_target(card: Card, cases: Sequence[Case], target: Path, *, source: Path, ending: str) -> None:
    expected = {name for case in cases for name in (*_files(case, ending)[0], _files(case, ending)[1])}
    expected |= {f"labelsTr/{case.id}{ending}" for case in cases if case.is_open}
    present = {
        f"{path.parent.name}/{path.name}" for folder in _FOLDERS for path in (target / folder).glob("[!.]*")
    }
    foreign = sorted(present - expected)
    mark = json.dumps({"name": card.name, "source": str(source.resolve())})
    unfinished = target / _UNFINISHED
    finished = target / "dataset.json"
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise DataError(f"{target}: lies inside the source '{source}'; convert into a folder outside of it.")
    other = unfinished.exists() and unfinished.read_text() != mark
    other = other or (finished.exists() and _name_in(finished) != card.name)
    other = other or (bool(present) and not unfinished.exists() and not finished.exists())
    if foreign or other:
        shown = f" (for instance {foreign[0]})" if foreign else ""
        raise DataError(
            f"{target}: holds files of another dataset or source{shown}; move them away, or convert into an "
            "empty folder."
        )
    if not finished.exists():
        write_text(mark, unfinished)


def _name_in(description: Path) -> object:
    try:
        return json.loads(description.read_text())["name"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return None


def _write_case(
    case: Case, target: Path, *, declared: Mapping[str, int] | None, ending: str, keep: bool
) -> set[int] | LeftOut:
    """Write the files of a case that are not there yet; return the label values that occur."""
    images, label = _files(case, ending)
    shape: tuple[int, ...] | None = None
    present: set[int] = set()
    try:
        labelled = None if case.label is None else _read_label(case, declared)
    except LeftOut as left_out:
        _write_case(replace(case, label=None), target, declared=declared, ending=ending, keep=keep)
        return left_out
    if labelled is not None and label is not None and case.label is not None:
        read, present, changed = labelled
        shape = (read.voxels if isinstance(read, Volume) else read).shape
        if not (keep and (target / label).exists()):
            _place(case.label if changed is None else partial(_same, changed), target / label)
    for image, name in zip(case.images, images, strict=True):
        done = keep and (target / name).exists()
        if not (done or isinstance(image, Path)):
            content = image()
            _check_shape(case, shape, (content.voxels if isinstance(content, Volume) else content).shape)
            _place(partial(_same, content), target / name)
            continue
        if isinstance(image, Path) and shape is not None and image.name.endswith(_NIFTI):
            _check_shape(case, shape, shape_of(image))
        if not done:
            _place(image, target / name)
    return present


def _check_shape(case: Case, label: tuple[int, ...] | None, image: tuple[int, ...]) -> None:
    if label is not None and image[: len(label)] != label:
        where = f"  [{case.label}]" if isinstance(case.label, Path) else ""
        raise DataError(
            f"case '{case.id}': image and label differ in shape, {image} against {label}{where}; "
            "fetch both again."
        )


def _read_label(
    case: Case, declared: Mapping[str, int] | None
) -> tuple[Volume | npt.NDArray[Any], set[int], Volume | npt.NDArray[Any] | None]:
    """Return the label as read, the final values that occur, and what to write (None: the file as it is)."""
    assert case.label is not None
    where = f"case '{case.id}'" + (f" [{case.label}]" if isinstance(case.label, Path) else "")
    read = _load(case.label)
    raw = read.voxels if isinstance(read, Volume) else read
    # slice by slice, because a sort of a whole-body label takes gigabytes
    found = np.unique(np.concatenate([np.unique(raw[..., z]) for z in range(raw.shape[-1])]))
    finite = np.nan_to_num(found, nan=0.5, posinf=0.5, neginf=0.5)
    odd = found[np.abs(finite - np.rint(finite)) > 1e-3]
    if odd.size:
        raise DataError(
            f"{where}: a label value is {odd[0]:g}, which is no whole number; this is not a label file."
        )
    values = sorted({int(value) for value in np.rint(found)})
    known = values if declared is None else (0, *declared.values())
    renumber = case.values or {value: value for value in known}
    unknown = [value for value in values if value not in renumber]
    if unknown:
        expected = sorted(renumber)
        shown = expected if len(expected) <= 25 else [*expected[:25], "..."]
        raise DataError(
            f"{where}: holds label values {unknown[:10]}, expected only {shown}; is it the right file?"
        )
    final = {renumber[value] for value in values}
    exact = all(int(value) == value and renumber[int(value)] == value for value in found)
    if exact and _is_taken_over(case.label):
        return read, final, None
    kind = np.uint8 if min(final) >= 0 and max(final) <= 255 else np.int32
    if raw.dtype.kind in "iub" and all(renumber[value] == value for value in values):
        written = raw.astype(kind)
    else:
        low = values[0]
        table = np.zeros(values[-1] - low + 1, dtype=kind)
        table[np.array(values) - low] = [renumber[value] for value in values]
        written = table[np.rint(raw).astype(np.int32) - low]
    return read, final, Volume(voxels=written, affine=read.affine) if isinstance(read, Volume) else written


def _load(source: Source) -> Volume | npt.NDArray[Any]:
    if not isinstance(source, Path):
        return source()
    if source.name.endswith(_NIFTI):
        return read_nifti(source)
    return read_itk(source) if source.name.endswith(_ITK) else read_picture(source)


def _same(content: Volume | npt.NDArray[Any]) -> Volume | npt.NDArray[Any]:
    return content


def _is_taken_over(source: Source) -> bool:
    return isinstance(source, Path) and source.name.endswith((".nii", ".nii.gz", ".png"))


def _place(source: Source, path: Path) -> None:
    """Put a file or a computed volume at `path`, under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}{path.name}")
    try:
        if isinstance(source, Path) and _is_taken_over(source):
            _take_over(source, temporary)
        else:
            content = _load(source)
            if isinstance(content, Volume):
                save(content, temporary)
            else:
                save_picture(content, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _take_over(source: Path, path: Path) -> None:
    if source.name.endswith(".nii"):
        with (
            source.open("rb") as plain,
            path.open("wb") as file,
            gzip.GzipFile("", "wb", 6, file, 0) as packed,
        ):
            shutil.copyfileobj(plain, packed, 2**20)
        return
    try:
        os.link(source.resolve(), path)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, path)


def _description(
    card: Card, cases: Sequence[Case], *, labels: Mapping[str, int], channels: Sequence[str], ending: str
) -> dict[str, Any]:
    description: dict[str, Any] = {
        "name": card.name,
        "channel_names": {str(number): channel for number, channel in enumerate(channels)},
        "labels": {"background": 0, **labels},
        "numTraining": sum(case.label is not None and not case.is_test for case in cases),
        "file_ending": ending,
        "reference": f"{card.title}. {card.home}",
        "licence": card.licence,
    }
    for key in ("domain", "patient"):
        named = {case.id: getattr(case, key) for case in cases if getattr(case, key) is not None}
        if named:
            description[key] = named
    return description


def _splits_of(
    cases: Sequence[Case], splits: Mapping[str, Mapping[str, Sequence[str]]]
) -> dict[str, dict[str, list[str]]]:
    """Return the published splits, reduced to the cases that are there; those without any are left out."""
    known = {case.id for case in cases}
    reduced = {
        name: {role: [case for case in ids if case in known] for role, ids in roles.items()}
        for name, roles in splits.items()
    }
    return {name: roles for name, roles in reduced.items() if any(roles.values())}
