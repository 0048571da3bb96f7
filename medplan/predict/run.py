"""Prediction of many files: resumable, and one bad file does not stop the others."""

import hashlib
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medplan.data.description import labels_entry
from medplan.data.formats import ending_of
from medplan.data.images import label_file, read_image, read_label, write_label
from medplan.data.inputs import find_inputs
from medplan.data.rawcase import RawCase
from medplan.errors import DataError, MedplanError, PlanError, UsageError, did_you_mean
from medplan.machine import tune_allocator
from medplan.method import Method
from medplan.predict.extras import write_extras
from medplan.predict.model import Model, Options, Prepared
from medplan.predict.options import expect_classes
from medplan.predict.outputs import NOTES, Output, output_path
from medplan.predict.prompts import Boxes, describe, read_boxes
from medplan.predict.separate import write_masks
from medplan.progress import track
from medplan.records import encode, read_json, write_json

__all__ = ["predict"]

CHANGED = "changed"
EPOCH = (1980, 1, 1, 0, 0, 0)

logger = logging.getLogger(__name__)


def predict(
    inputs: Path | Sequence[RawCase],
    output: Path,
    model: Model,
    *,
    options: Options | None = None,
    probabilities: bool = False,
    extras: bool = False,
    separate_tasks: bool = False,
    prompts: Path | None = None,
) -> tuple[Path, ...]:
    """Segment an image, a folder of images or a DICOM folder, or cases that are known already.

    Every label map is named after its case, lies on the grid of its image and has its format (``.png`` for
    pictures, that of the training data for DICOM). Outputs that are complete, and were made from the same
    files with the same model and options, are kept. The next case is read while the current one is predicted.

    Args:
        output: folder for the label maps.
        probabilities: also write ``CASE_probabilities.npz``: float16 (K, Z, Y, X) on the image's grid under
            the key ``probabilities``; background comes first for exclusive classes.
        extras: also write what else the method says of a case, see `medplan.predict.extras`.
        separate_tasks: also write a mask of each class, see `medplan.predict.separate`.
        prompts: boxes per case, see `medplan.predict.prompts`.

    Returns: the label maps, sorted by case.
    Raises: DataError after the last case, if some could not be predicted, with the reason of the first.
    """
    if model.runtime.device.type == "cpu":
        tune_allocator()
    options = options or Options()
    if isinstance(inputs, Path):
        inputs = find_inputs(inputs, len(model.dataset.channels), model.dataset.file_ending)
    cases = tuple(inputs)
    _check(options, model, extras=extras)
    boxes = {} if prompts is None else _boxes_of(prompts, cases, model)
    job = _Job(
        model=model,
        options=options,
        output=output,
        probabilities=probabilities,
        extras=extras,
        separate_tasks=separate_tasks,
        boxes=boxes,
    )
    sources = {image.resolve() for case in cases for image in case.images}
    for case in cases:
        if job.path(case).resolve() in sources:
            raise UsageError(f"-o {output}: the label map of '{case.id}' would overwrite its image there.")
    if (output / "dataset.json").exists() and not (output / NOTES).is_dir():
        raise UsageError(
            f"-o {output}: the dataset.json of other data there would be lost; name another folder."
        )
    (output / NOTES).mkdir(parents=True, exist_ok=True)
    _remove_leftovers(output, cases)
    used = describe(boxes, [case.id for case in cases], options.prompt) if model.takes_prompts else None
    _describe(model, output, used)
    failures: dict[str, str] = {}
    written: list[Path] = []
    for case, result in track(_results(cases, job), label="prediction", total=len(cases)):
        if isinstance(result, Path):
            written.append(result)
            continue
        failures[case.id] = str(result)
        if len(cases) > 1:
            logger.error("%s: not predicted. %s", case.id, result)
    if failures and len(cases) == 1:
        raise DataError(failures[cases[0].id])
    if failures:
        first = next(iter(failures))
        named = ", ".join(f"'{case}'" for case in list(failures)[:5]) + (", ..." if len(failures) > 5 else "")
        others = f"; the others are in {output}" if written else ""
        raise DataError(
            f"{len(failures)} of {len(cases)} cases could not be predicted ({named}){others}. '{first}': "
            f"{failures[first]}"
        )
    return tuple(written)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is the same for all cases."""

    model: Model
    options: Options
    output: Path
    probabilities: bool
    extras: bool
    separate_tasks: bool
    boxes: Boxes

    def prepare(self, case: RawCase) -> "_Waiting | Path":
        """Read and prepare a case, or return its output if that is complete."""
        made_from = self._made_from(case)
        done = self._finished(case, made_from)
        if done is not None:
            return done
        image = read_image(case.images, channels=len(self.model.dataset.channels))
        boxes = self.boxes.get(case.id)
        prepared = self.model.prepare(image, name=case.id, boxes=boxes, options=self.options)
        return _Waiting(prepared=prepared, made_from=made_from)

    def predict(self, case: RawCase, waiting: "_Waiting") -> Path:
        """Predict a case and write its files, its record last."""
        self._keep_changed(case)
        scratch = self.output / f".{case.id}.{os.getpid()}.tmp.npy" if self.probabilities else None
        masks: dict[str, npt.NDArray[np.integer[Any]]] | None = {} if self.separate_tasks else None
        files = []
        try:
            label = self.model.predict_prepared(
                waiting.prepared,
                options=self.options,
                probabilities=scratch,
                masks=masks,
                show_progress=True,
            )
            if scratch is not None:
                files.append(_compress(scratch, self.output / f"{case.id}_probabilities.npz"))
        finally:
            if scratch is not None:
                scratch.unlink(missing_ok=True)
        path = write_label(self.path(case), label, waiting.prepared.geometry)
        files.append(path)
        files += write_masks(masks or {}, path, waiting.prepared.geometry)
        if self.extras:
            files += write_extras(self.model, waiting.prepared, path)
        digests = {file.name: _sha256([file]) for file in files}
        images = tuple(str(image.resolve()) for image in case.images)
        note = Output(made_from=waiting.made_from, files=digests, images=images)
        write_json(note, output_path(self.output, case.id))
        return path

    def path(self, case: RawCase) -> Path:
        """Return where the label map of a case goes."""
        ending = ending_of(case.images[0]) or self.model.dataset.file_ending
        return label_file(self.output / f"{case.id}{ending}")

    def _made_from(self, case: RawCase) -> str:
        """Return a digest of everything that the output depends on."""
        boxes = self.boxes.get(case.id)
        given = None if boxes is None else boxes if isinstance(boxes, Mapping) else {"": boxes}
        facts = [
            self.model.digest,
            self.model.dataset.name,
            self.model.runtime.precision,
            encode(self.options),
            encode(self.model.postprocessing) if self.options.postprocessing else None,
            self.probabilities,
            self.extras,
            self.separate_tasks,
            given and {name: box.tolist() for name, box in given.items()},
            _sha256(case.images),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _keep_changed(self, case: RawCase) -> None:
        """Move a label map aside that was changed since it was predicted: corrections are hours of work."""
        path = self.path(case)
        try:
            digest = read_json(Output, output_path(self.output, case.id)).files.get(path.name)
            is_changed = path.is_file() and _sha256([path]) != digest
            if is_changed:
                read_label(path)
        except (PlanError, DataError):  # never finished, or damaged
            return
        if is_changed:
            kept = self.output / CHANGED / path.name
            kept.parent.mkdir(exist_ok=True)
            path.replace(kept)
            logger.warning("%s was changed since it was predicted; it is kept as %s.", path, kept)
        output_path(self.output, case.id).unlink()

    def _finished(self, case: RawCase, made_from: str) -> Path | None:
        try:
            record = read_json(Output, output_path(self.output, case.id))
        except PlanError:
            return None
        paths = {self.output / name: digest for name, digest in record.files.items()}
        if record.made_from != made_from or not all(path.is_file() for path in paths):
            return None
        intact = all(_sha256([path]) == digest for path, digest in paths.items())
        return self.path(case) if intact else None


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    """A case that was read, and the digest of what its output will depend on."""

    prepared: Prepared
    made_from: str


def _results(cases: Sequence[RawCase], job: _Job) -> Iterator[tuple[RawCase, Path | Exception]]:
    """Predict one case after the other while a thread prepares the next one, and never more than that."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as reader:
        coming: Future[_Waiting | Path] = reader.submit(job.prepare, cases[0])
        for case, following in zip(cases, [*cases[1:], None], strict=True):
            current = coming
            if following is not None:
                coming = reader.submit(job.prepare, following)
            yield case, _settle(case, current, job)


def _settle(case: RawCase, coming: "Future[_Waiting | Path]", job: _Job) -> Path | Exception:
    try:
        ready = coming.result()
        return ready if isinstance(ready, Path) else job.predict(case, ready)
    except (MemoryError, torch.OutOfMemoryError):
        return DataError(
            f"There was not enough memory: the case does not fit into {job.model.runtime.memory()}; close "
            "other programs that use it, or take --device cpu."
        )
    except (MedplanError, OSError) as error:
        return error


def _check(options: Options, model: Model, *, extras: bool) -> None:
    """Raise UsageError for what the model cannot do, before any case is predicted."""
    expect_classes(options.classes, model.dataset)
    method = model.methods[0]
    options.prompts(method.needs)
    if extras and type(method).extras is Method.extras:
        raise UsageError(f"--extras: {model.plan.method} gives out nothing besides the segmentation.")


def _boxes_of(path: Path, cases: Sequence[RawCase], model: Model) -> Boxes:
    if not model.takes_prompts:
        raise UsageError(f"--prompts: the method '{model.plan.method}' takes no boxes; leave them out.")
    boxes = read_boxes(path)
    ids, classes = [case.id for case in cases], model.dataset.labels.names
    for name, given in boxes.items():
        if name not in ids:
            raise DataError(f"{path}: there is no case '{name}' among the inputs{did_you_mean(name, ids)}.")
        for of_class in given if isinstance(given, Mapping) else ():
            if of_class not in classes:
                raise DataError(
                    f"{path}: case '{name}': the model has no class '{of_class}'"
                    f"{did_you_mean(of_class, classes)}; it knows {', '.join(classes)}."
                )
    return boxes


def _describe(model: Model, output: Path, prompts: str | None) -> None:
    """Say beside the label maps what their values mean, in the words of a raw dataset's dataset.json."""
    labels = model.dataset.labels
    description: dict[str, Any] = {
        "name": model.dataset.name,
        "channel_names": {str(number): name for number, name in enumerate(model.dataset.channels)},
        "labels": labels_entry(labels),
        "file_ending": model.dataset.file_ending,
        "numTraining": 0,
    }
    if labels.others_are_background:
        description["others_are_background"] = True
    if prompts is not None:
        description["prompts"] = prompts
    order = labels.region_order
    if order is None and any(len(given) > 1 for given in labels.values):
        order = tuple(given[0] for given in labels.values)
    if order is not None:
        description["regions_class_order"] = list(order)
    write_json(description, output / "dataset.json")


def _remove_leftovers(output: Path, cases: Sequence[RawCase]) -> None:
    """Remove what a killed process left half written of these cases; others may be in another one's hands."""
    beginnings = tuple(f".{case.id}{mark}" for case in cases for mark in "._")
    for path in output.glob(".*.tmp*"):
        if not path.name.startswith(beginnings):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sha256(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        files = sorted(other for other in path.iterdir() if other.is_file()) if path.is_dir() else [path]
        for file in files:
            try:
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
            except OSError as error:
                raise DataError(f"{file}: cannot be read ({error.strerror}).") from None
    return digest.hexdigest()


def _compress(source: Path, target: Path) -> Path:
    """Write a ``.npy`` of float32 as float16 into a ``.npz``, a slice at a time. Equal arrays give equal
    bytes.
    """
    array: npt.NDArray[np.float32] = np.load(source, mmap_mode="r")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    entry = zipfile.ZipInfo("probabilities.npy", date_time=EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    header = {"descr": "<f2", "fortran_order": False, "shape": array.shape}
    with (
        zipfile.ZipFile(temporary, "w", compresslevel=1) as packed,
        packed.open(entry, "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for volume in array:
            for plane in volume:
                file.write(plane.astype("<f2").tobytes())
    temporary.replace(target)
    return target
