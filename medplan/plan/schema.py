"""The plan: every decision of one method on one or several datasets, as plain data.

A plan is written to ``plans/<Name>/<method>.json``, may be edited by hand, and is copied into every run
folder and checkpoint. It can import nothing: it holds numbers and names only. All axis orders are z, y, x;
two-dimensional pictures are volumes with one slice.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

from medplan.data.labels import LabelSpace
from medplan.errors import PlanError
from medplan.records import encode

__all__ = ["DatasetPlan", "Fold", "Grid", "Normalisation", "Plan", "Pyramid", "Training"]

Modality = Literal["CT", "MR", "PET", "RGB", "grey", "other"]

Fold = int | Literal["all"]
"""Number of a fold, or all cases."""


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """How the intensities of one channel become network input.

    ``(clip(v, low, high) - mean) / std``; constants that are None are taken from the case itself:
    `low` and `high` None mean no clipping, `mean` and `std` None the case's own mean and deviation (inside
    the non-zero region when `nonzero_only`), unless the scheme is `unit`, which maps [low, high] (or the
    case's `percentiles`, in percent) to [0, 1].
    """

    scheme: Literal["zscore", "unit", "none"]
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: float | None = None
    percentiles: tuple[float, float] | None = None
    nonzero_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The grid that cases are resampled to. Methods that agree on it share the preprocessed data.

    Attributes:
        spacing_mm: target spacing (z, y, x) after canonical orientation; None keeps each case's own grid
            (pictures, or spacing unknown).
        shape: fixed number of voxels (z, y, x) that every case is squeezed to, or None. Only with spacing
            None. Along an axis with 0 each case keeps its own number.
        orientation: canonical orientation (nibabel axis codes of increasing x, y, z), or None to keep the
            array as it is stored (pictures).
        crop: ``nonzero`` crops to the box of non-zero intensities, ``body`` to the box of the body (air
            removed), ``none`` keeps everything.
        align_to: id of the case that all others are affinely aligned to before anything else, or None.
        keeps_oblique: oblique thick slices (`Geometry.is_oblique`) stay as they are stored, because the axes
            nearest to theirs change from patient to patient. Plans made before this was known turn them.
    """

    spacing_mm: tuple[float, float, float] | None
    shape: tuple[int, int, int] | None = None
    orientation: str | None = "RAS"
    crop: Literal["nonzero", "body", "none"] = "nonzero"
    align_to: str | None = None
    keeps_oblique: bool = False

    def __post_init__(self) -> None:
        if self.spacing_mm is not None and min(self.spacing_mm) <= 0:
            raise ValueError("'spacing_mm' should be positive")
        if self.shape is not None and self.spacing_mm is not None:
            raise ValueError("'shape' and 'spacing_mm' exclude each other")
        if self.shape is not None and min(self.shape) < 0:
            raise ValueError("'shape' should not be negative")


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """One dataset of a plan.

    Attributes:
        name: the dataset's name, as in ``raw_data/<name>``.
        channels: channel names, in file order.
        modalities: per channel.
        labels: the classes the method learns (may group the raw labels).
        normalisations: per channel.
        folds: per fold the case ids by role (atlas, labelled, unlabelled, support, validation, pretrain,
            test); the roles of one fold share no case, except that `pretrain` (images only) may.
        domains: domain of each case that has one.
        file_ending: of image and label files.
        share: probability that a training sample is drawn from this dataset (several datasets only).
        novel: classes that are kept out of learning: their labels serve to show and to score them only.
        extra: further volumes to preprocess, by name, with the numbers they are made with; see
            `medplan.preprocess.extra`.
        median_spacing_mm: median (z, y, x) of the cases as stored, which predictions are told is usual; None
            for pictures.
        has_oblique_cases: whether some cases are oblique thick slices (`Geometry.is_oblique`).
    """

    name: str
    channels: tuple[str, ...]
    modalities: tuple[Modality, ...]
    labels: LabelSpace
    normalisations: tuple[Normalisation, ...]
    folds: tuple[dict[str, tuple[str, ...]], ...]
    domains: dict[str, str] = field(default_factory=dict)
    file_ending: str = ".nii.gz"
    share: float = 1.0
    novel: tuple[str, ...] = ()
    extra: dict[str, dict[str, Any]] = field(default_factory=dict)
    median_spacing_mm: tuple[float, float, float] | None = None
    has_oblique_cases: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.novel if name not in self.labels.names]
        if unknown:
            known = ", ".join(self.labels.names)
            raise ValueError(f"'{self.name}' has no class '{unknown[0]}' ('novel'); its classes are {known}")
        if not len(self.channels) == len(self.modalities) == len(self.normalisations):
            raise ValueError(f"'{self.name}' needs one modality and one normalisation per channel")
        for number, roles in enumerate(self.folds):
            seen: dict[str, str] = {}
            for role, ids in roles.items():
                if role == "pretrain":
                    continue
                for case in ids:
                    if case in seen:
                        raise ValueError(
                            f"case '{case}' of '{self.name}' is both '{seen[case]}' and '{role}' in fold "
                            f"{number}"
                        )
                    seen[case] = role

    def roles(self, fold: Fold) -> dict[str, tuple[str, ...]]:
        """Return case ids by role; see `Plan.roles`."""
        if self.is_for_pretraining:
            return dict(self.folds[0])
        if fold == "all":
            roles = dict(self.folds[0])
            validation = roles.pop("validation", ())
            # What learns from one example takes the images of the others.
            role = "labelled" if "labelled" in roles else "unlabelled"
            return {**roles, role: tuple(sorted((*roles.get(role, ()), *validation)))}
        if not 0 <= fold < len(self.folds):
            there = ", ".join(map(str, range(len(self.folds))))
            raise PlanError(f"'{self.name}' has no fold {fold}; it has {there} and 'all'.")
        return dict(self.folds[fold])

    @property
    def is_for_pretraining(self) -> bool:
        """Whether its images serve the first phases only (``--pretrain-on``); nothing is predicted for it."""
        return all(set(roles) == {"pretrain"} for roles in self.folds)

    def preprocessed_name(self, grid: Grid) -> str:
        """Name of the folder of preprocessed cases: readable, and different for every grid and
        normalisation.
        """
        geometry = encode(grid)
        if not grid.keeps_oblique:  # so that data that were prepared before are found
            del geometry["keeps_oblique"]
        facts = json.dumps([geometry, *encode([self.normalisations, self.labels])], sort_keys=True)
        digest = hashlib.blake2b(facts.encode(), digest_size=4).hexdigest()
        if grid.spacing_mm is not None:
            readable = "x".join(f"{value:g}" for value in grid.spacing_mm) + "mm"
        else:
            readable = "native" if grid.shape is None else "x".join(map(str, grid.shape))
        return f"{readable}-{digest}"


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """Shape of a convolutional encoder: one entry per stage, finest first, each (z, y, x).

    Attributes:
        features: channels per stage.
        strides: down-sampling on entering a stage; the first is (1, 1, 1).
        kernels: kernel size per stage; 1 along axes that are still too coarse to mix.
        blocks: residual blocks per encoder stage.
        decoder_blocks: convolution blocks per decoder stage (one stage fewer).
    """

    features: tuple[int, ...]
    strides: tuple[tuple[int, int, int], ...]
    kernels: tuple[tuple[int, int, int], ...]
    blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        stages = len(self.features)
        if (
            not stages
            == len(self.strides)
            == len(self.kernels)
            == len(self.blocks)
            == len(self.decoder_blocks) + 1
        ):
            raise ValueError("features, strides, kernels and blocks should have one entry per stage")

    @property
    def multiple(self) -> tuple[int, int, int]:
        """What each side (z, y, x) of a patch has to be a multiple of, to be halved without a rest."""
        z, y, x = (prod(stride[axis] for stride in self.strides) for axis in range(3))
        return z, y, x


@dataclass(frozen=True, kw_only=True)
class Training:
    """Numbers that every method has.

    Attributes:
        iterations: optimiser steps over all phases, which a method splits among its phases; 0 keeps the
            weights that training would have started from.
        batch_size: samples per step over all ranks; of each kind, where a method draws several kinds.
        lr: base learning rate of the main optimiser.
        weight_decay: of the main optimiser.
        seed: of everything random.
        validate_every: steps between validations.
        checkpoint_every: steps between checkpoints.
        patience: validations without improvement before training stops early; None trains to the end.
    """

    iterations: int
    batch_size: int
    lr: float
    weight_decay: float = 0.0
    seed: int = 0
    validate_every: int = 1000
    checkpoint_every: int = 250
    patience: int | None = None

    def __post_init__(self) -> None:
        least = {"iterations": 0, "batch_size": 1, "validate_every": 1, "checkpoint_every": 1}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"'{name}' should be at least {number}, found {getattr(self, name)}")
        if self.lr <= 0:
            raise ValueError(f"'lr' should be positive, found {self.lr}")

    def of_length(self, iterations: int) -> "Training":
        """Return the same for so many iterations: validated every 1000 of them, but at least five times."""
        fifth = max(1, iterations // 5)
        return replace(
            self, iterations=iterations, validate_every=min(1000, fifth), checkpoint_every=min(250, fifth)
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every decision for one method on one or several datasets.

    Attributes:
        name: name of the plan: the dataset's, or the one given to a union of datasets.
        method: file name in ``medplan/methods``, or an entry point.
        dims: 2 (slices; patch_size[0] is 1) or 3.
        datasets: at least one.
        grid: common to all datasets.
        patch_size: voxels (z, y, x) of a training sample and of the prediction window.
        encoder: name of the encoder, one of the method's `Needs.encoders`.
        encoder_weights: path of a weight file to start from, or None for random.
        pyramid: shape of the convolutional encoder where the encoder is one that is planned.
        training: numbers that every method has.
        config: the method's own numbers, read into its `Config`.
        predicted_gpu_bytes: what a training step is expected to take.
        score: 0 to 100, how well the method fits; without a choice the highest is trained.
        reasons: one line per decision, by the decision's dotted key.
    """

    name: str
    method: str
    dims: Literal[2, 3]
    datasets: tuple[DatasetPlan, ...]
    grid: Grid
    patch_size: tuple[int, int, int]
    encoder: str
    training: Training
    encoder_weights: str | None = None
    pyramid: Pyramid | None = None
    config: dict[str, Any] = field(default_factory=dict)
    predicted_gpu_bytes: int | None = None
    score: int = 0
    reasons: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ValueError("'datasets' should name at least one dataset")
        if min(self.patch_size) < 1 or (self.dims == 2 and self.patch_size[0] != 1):
            raise ValueError(f"'patch_size' {self.patch_size} does not fit 'dims' {self.dims}")
        steps = (1, 1, 1) if self.pyramid is None else self.pyramid.multiple
        if any(side % step for side, step in zip(self.patch_size, steps, strict=True)):
            raise ValueError(
                f"'patch_size' (z, y, x) should be a multiple of {steps}, which the network halves it by, "
                f"found {self.patch_size}"
            )
        if len({len(dataset.channels) for dataset in self.learned or self.datasets}) != 1:
            raise ValueError("all datasets of a plan need the same number of channels")

    @property
    def learned(self) -> tuple[DatasetPlan, ...]:
        """The datasets whose classes are learnt; those that are only pretrained on come after them."""
        return tuple(dataset for dataset in self.datasets if not dataset.is_for_pretraining)

    def mirror_axes(self, dataset: DatasetPlan) -> tuple[int, ...]:
        """Return the axes (0 z, 1 y, 2 x) along which images of a dataset may be flipped.

        Where classes tell left from right that leaves out x, which is that axis on canonical grids and in
        pictures. Volumes that stay as stored can have any axis there, oblique slices even parts of all of
        them, so of these none is flipped.
        """
        axes = (0, 1, 2)[3 - self.dims :]
        if not dataset.labels.tells_sides:
            return axes
        if self.grid.spacing_mm is None and dataset.median_spacing_mm is None:  # pictures
            return axes[:-1]
        as_stored = self.grid.orientation is None or (self.grid.keeps_oblique and dataset.has_oblique_cases)
        return () if as_stored else axes[:-1]

    @property
    def num_channels(self) -> int:
        return len(self.datasets[0].channels)

    def roles(self, fold: Fold) -> dict[str, tuple[str, ...]]:
        """Return case keys ``<dataset>/<id>`` by role, over all datasets.

        Args:
            fold: its number, or ``all`` to learn from the validation cases too and validate on none.

        Raises: PlanError if there is no such fold.
        """
        keys: dict[str, list[str]] = {}
        for dataset in self.datasets:
            for role, ids in dataset.roles(fold).items():
                keys.setdefault(role, []).extend(f"{dataset.name}/{case}" for case in ids)
        return {role: tuple(cases) for role, cases in keys.items()}

    def dataset(self, name: str) -> DatasetPlan:
        return next(dataset for dataset in self.datasets if dataset.name == name)
