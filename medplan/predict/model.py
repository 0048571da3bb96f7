"""A trained model in memory: loaded once, it segments arrays, images and files as often as one likes."""

import copy
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medplan import checkpoint as checkpoints
from medplan import registry
from medplan.data.images import Geometry, Image, read_image, write_label
from medplan.errors import DataError, UsageError
from medplan.method import Method, Predictor, Volume
from medplan.plan.schema import DatasetPlan, Fold, Plan
from medplan.predict import postprocess
from medplan.predict.archive import opened
from medplan.predict.folder import find_folds, read_atlas, read_support
from medplan.predict.members import check_alike, choose, hash_state, mean_of
from medplan.predict.options import Options, choose_dataset, only
from medplan.predict.plausible import warn_if_unlike_training
from medplan.predict.postprocess import Postprocessing
from medplan.predict.prompts import CaseBoxes, to_prepared
from medplan.predict.separate import Masks
from medplan.predict.sizes import at_size
from medplan.predict.sliding_window import ahead, predict_case
from medplan.predict.support import Example, prepare_examples
from medplan.preprocess.atlas import Atlas
from medplan.preprocess.geometry import Restoration
from medplan.preprocess.prepare import prepare
from medplan.preprocess.restore import LabelRestorer
from medplan.progress import track
from medplan.runtime import Precision, Runtime
from medplan.samples.cases import Case

__all__ = ["Model", "Options", "Prepared"]

LabelMap = npt.NDArray[np.integer[Any]]
PathLikes = str | PathLike[str] | Sequence[str | PathLike[str]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An input on the model's grid, the way back, and the grid it came on."""

    case: Case
    restoration: Restoration
    geometry: Geometry


@dataclass(frozen=True, kw_only=True)
class _Member:
    """One fold: its method in eval mode and the support cases that it learnt with."""

    method: Method
    support: tuple[Case, ...]

    def support_of(self, case: Case) -> list[Case]:
        return [other for other in self.support if other.dataset == case.dataset]


class Model:
    """One or several folds of a run, whose logits are averaged.

    Use `Model.load`. Arrays are (C, Z, Y, X) or (Z, Y, X); spacings are in mm, (z, y, x); answers hold the
    raw values of the training labels. Not for use by several threads at once.

    Attributes:
        plan: the plan of the first fold.
        dataset: the dataset whose channels, normalisation and labels apply.
        folds: their numbers.
        runtime: device and precision.
        digest: identifies weights, plan and support cases.
        postprocessing: decided on validation.
    """

    def __init__(
        self,
        members: Sequence[_Member],
        *,
        plan: Plan,
        dataset: DatasetPlan,
        folds: tuple[Fold, ...],
        runtime: Runtime,
        digest: str,
        postprocessing: Postprocessing,
        atlas: Atlas | None = None,
    ) -> None:
        self._members = tuple(members)
        self._names_classes = False
        self.plan = plan
        self.dataset = dataset
        self.folds = folds
        self.runtime = runtime
        self.digest = digest
        self.postprocessing = postprocessing
        self._atlas = atlas

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        folds: Sequence[Fold] | None = None,
        checkpoint: Literal["best", "last"] = "best",
        device: str = "auto",
        precision: Precision = "auto",
        dataset: str | None = None,
        support: Sequence[str] = (),
        classes: Sequence[str] = (),
    ) -> "Model":
        """Load a run folder, one fold's folder, or a zip made by ``medplan export``.

        Args:
            folds: the folds to average; None takes all that are trained.
            checkpoint: the one that validation picked, or the last.
            device, precision: see `Runtime.choose`.
            dataset: which of its datasets' labels to predict, where it learnt several.
            support: ids of the support cases to use, where the method has such; empty for all.
            classes: where no dataset is named, the one that alone has all of these is taken.

        Raises: CheckpointError if there is no such model or it is damaged; UsageError for an unknown dataset
            or support case.
        """
        runtime = Runtime.choose(device, precision=precision)
        with opened(Path(path)) as run:
            found = find_folds(run, folds=folds, checkpoint=checkpoint)
            digest = hashlib.blake2b(digest_size=16)
            members, plans = [], []
            for fold in found:
                state = checkpoints.load(fold.checkpoint)
                plan = checkpoints.plan_of(state, path=fold.checkpoint)
                plans.append(plan)
                # The checkpoint holds every weight: the file that training started from may be gone.
                method = registry.find(plan.method)(replace(plan, encoder_weights=None))
                checkpoints.restore(method, state["weights"], where=str(fold.checkpoint))
                method.to(runtime.device).eval().requires_grad_(False)
                examples = choose(read_support(fold.folder), support, run)
                members.append(_Member(method=method, support=examples))
                hash_state(digest, state["weights"], examples)
            check_alike(plans, run)
            of_run = (run / postprocess.FILE_NAME).is_file()
            record = postprocess.read_common([run] if of_run else [fold.folder for fold in found])
            digest.update(repr(plans[0]).encode())
            atlas = read_atlas(found[0].folder, plans[0].grid)
            if atlas is not None:
                digest.update(np.ascontiguousarray(atlas.volume).data)
            return cls(
                members,
                plan=plans[0],
                dataset=choose_dataset(plans[0], dataset, classes),
                folds=tuple(fold.fold for fold in found),
                runtime=runtime,
                digest=digest.hexdigest(),
                postprocessing=record,
                atlas=atlas,
            )

    @property
    def takes_prompts(self) -> bool:
        """Whether boxes may be given with images."""
        return self._members[0].method.needs.prompts

    @property
    def methods(self) -> tuple[Method, ...]:
        """The trained methods, one per fold, in eval mode."""
        return tuple(member.method for member in self._members)

    @property
    def support_ids(self) -> tuple[str, ...]:
        """Ids of the labelled cases that are kept with the model."""
        return tuple(dict.fromkeys(case.id for member in self._members for case in member.support))

    def with_support(self, examples: Sequence[Example]) -> "Model":
        """Return a model that segments the classes of these examples instead of those it learnt.

        Raises: UsageError if the method learns its classes in training; DataError for a bad example.
        """
        if not self._members[0].method.needs.new_classes:
            own = ", ".join(self.support_ids) or "it has none"
            what = "segments the classes it was trained on; it takes no example but its own"
            raise UsageError(f"{self.plan.method} {what} ({own}). Train 'densemp' for new classes.")
        shown, cases = prepare_examples(examples, self.dataset, self.plan.grid, atlas=self._atlas)
        digest = hashlib.blake2b(f"{self.digest} {shown.labels!r}".encode())
        hash_state(digest, {}, cases)
        model = copy.copy(self)
        model._members = tuple(replace(member, support=cases) for member in self._members)
        model.dataset, model.postprocessing, model._names_classes = shown, Postprocessing(), True
        model.digest = digest.hexdigest()
        return model

    def predict_file(
        self,
        paths: PathLikes,
        *,
        output: str | PathLike[str] | None = None,
        options: Options | None = None,
    ) -> LabelMap:
        """Segment one scan from its file, its files (one per channel) or its DICOM folder.

        Args:
            output: also write the label map there, on the grid and with the header of the first file.

        Returns: (Z, Y, X) raw label values; Z = 1 for pictures.
        Raises: DataError if a file cannot be read or the channels do not fit.
        """
        several = [paths] if isinstance(paths, (str, PathLike)) else list(paths)
        image = read_image([Path(path) for path in several], channels=len(self.dataset.channels))
        label = self.predict_image(image, options=options)
        if output is not None:
            write_label(Path(output), label, image.geometry)
        return label

    def predict_array(
        self,
        array: npt.NDArray[Any],
        spacing_mm: tuple[float, float, float] | None = None,
        *,
        options: Options | None = None,
    ) -> LabelMap:
        """Segment an array.

        Args:
            array: (C, Z, Y, X), or (Z, Y, X) or (Y, X) for one channel; intensities as in the training files
                (HU for CT), not normalised. A colour picture is (3, 1, Y, X).
            spacing_mm: (z, y, x); None for pictures. Axes run to the patient's left (x), back (y) and head
                (z); for other orientations use `predict_image` with their `Geometry`.

        Returns: raw label values, of the array's shape without the channels.
        Raises: DataError if the channels do not fit, or the spacing is missing.
        """
        if array.ndim not in (2, 3, 4):
            raise DataError(
                f"An array should be (C, Z, Y, X), (Z, Y, X) or (Y, X), found shape {array.shape}."
            )
        volume = array[(None,) * (4 - array.ndim)]
        z, y, x = volume.shape[1:]
        image = Image(array=volume, geometry=Geometry(shape=(z, y, x), spacing_mm=spacing_mm))
        label = self.predict_image(image, options=options)
        return label[0] if array.ndim == 2 else label

    def predict_image(self, image: Image, *, options: Options | None = None) -> LabelMap:
        """Segment an image as `medplan.data.images.read_image` gives it.

        Returns: (Z, Y, X) raw label values on the image's own grid.
        Raises: DataError if the channels do not fit.
        """
        return self.predict_prepared(self.prepare(image, options=options), options=options)

    def prepare(
        self,
        image: Image,
        *,
        name: str = "image",
        boxes: CaseBoxes | None = None,
        options: Options | None = None,
    ) -> Prepared:
        """Bring an image onto the model's grid; runs on the CPU, also in a thread beside a prediction.

        Args:
            name: of the case, for messages.
            boxes: prompts (n, 6) on the image's grid, see `medplan.predict.prompts`.
            options: those that `predict_prepared` will be given.
        """
        options = options or Options()
        expected = self.dataset.channels
        if len(image.array) != len(expected):
            raise DataError(
                f"case '{name}': the model expects {len(expected)} channels ({', '.join(expected)}), the "
                f"image has {len(image.array)}."
            )
        if self.plan.grid.spacing_mm is not None and image.geometry.spacing_mm is None:
            raise DataError(
                f"case '{name}': the model works at {self.plan.grid.spacing_mm} mm, but the image has no "
                "spacing; give it as a volume with its spacing (z, y, x) in mm."
            )
        warn_if_unlike_training(image, self.dataset, name=name)
        key = f"{self.dataset.name}/{name}"
        case, restoration = prepare(image, self.dataset, self.plan.grid, key=key, atlas=self._atlas)
        case = replace(case, prompts={**case.prompts, **options.prompts(self._members[0].method.needs)})
        if self._names_classes:
            case = replace(case, prompts={**case.prompts, "classes": self.dataset.labels.names})
        if boxes is not None:
            case = replace(case, prompts={**case.prompts, "boxes": to_prepared(boxes, restoration)})
        if options.output_size is not None:
            restoration = at_size(restoration, options.output_size)
        return Prepared(case=case, restoration=restoration, geometry=restoration.native)

    def predict_prepared(
        self,
        prepared: Prepared,
        *,
        options: Options | None = None,
        probabilities: Path | None = None,
        masks: dict[str, LabelMap] | None = None,
        show_progress: bool = False,
    ) -> LabelMap:
        """Segment a prepared input.

        Args:
            probabilities: also write those of every output there, as a ``.npy`` of float32 (K, Z, Y, X) on
                the input's own grid; background comes first for exclusive classes. Post-processing leaves
                them be.
            masks: is given a mask (Z, Y, X) of each class by name, see `medplan.predict.separate`.

        Returns: (Z, Y, X) raw label values on the input's own grid.
        """
        options = options or Options()
        labels = self.dataset.labels
        restoration, slabs = prepared.restoration, self._answers_at(prepared, options)
        if slabs is None:
            slabs = self.logits(prepared.case, options=options)
        else:
            restoration = replace(restoration, shape=restoration.box_shape)
        if self.runtime.device.type != "cpu":
            slabs = ahead(slabs)
        restorer = LabelRestorer(
            restoration, labels, probabilities=probabilities is not None, file=probabilities
        )
        separate = None if masks is None else Masks(restoration, labels)
        for slab in track(slabs, label=f"slabs of {prepared.case.id}") if show_progress else slabs:
            restorer.add(slab)
            if separate is not None:
                separate.add(slab)
        label = labels.decode(restorer.finish().classes)
        if options.postprocessing:
            label = postprocess.apply(self.postprocessing, label, labels)
        if masks is not None and separate is not None:
            masks.update(separate.finish(label, options.classes))
        return only(label, options.classes, self.dataset)

    def logits(self, case: Case, *, options: Options | None = None) -> Iterator[Tensor]:
        """Yield the averaged logits of a prepared case, (K, dz, Y, X) float32, slab by slab along z."""
        options, labels = options or Options(), self.dataset.labels
        mirror_axes = self.plan.mirror_axes(self.dataset) if options.mirror else ()
        return predict_case(
            self._predictors(case),
            case,
            patch_size=self.plan.patch_size,
            num_outputs=labels.num_outputs,
            step=options.step,
            mirror_axes=mirror_axes,
            device=self.runtime.device,
            batch_size=options.batch_size,
            autocast=self.runtime.autocast,
        )

    def extras(self, case: Case) -> dict[str, Volume | float]:
        """Return what the first fold's method says of a prepared case besides its segmentation."""
        member = self._members[0]
        with torch.no_grad(), self.runtime.autocast():
            return member.method.extras(case, member.support_of(case))

    def _answers_at(self, prepared: Prepared, options: Options) -> Iterator[Tensor] | None:
        """Return logits on the grid of the output where the method answers there by itself, else None."""
        if options.mirror or prepared.restoration.alignment is not None:
            return None
        case, shape = prepared.case, prepared.restoration.box_shape
        answers = []
        for member in self._members:
            answer = member.method.answers_at(case, member.support_of(case), shape)
            if answer is None:
                return None
            answers.append(answer)
        return mean_of(answers, self.runtime)

    def _predictors(self, case: Case) -> tuple[Predictor, ...]:
        with torch.no_grad(), self.runtime.autocast():
            return tuple(member.method.predictor(case, member.support_of(case)) for member in self._members)
