"""The interface between the training loop and the methods.

A method holds networks, losses and its own numbers. It never sees a rank, a device, a path, a logger or the
environment; the loop never names a teacher, a queue, a task or a prompt. They meet here.

Tensor shapes, everywhere: images are (B, C, Z, Y, X) float32, label maps (B, Z, Y, X) int16 codes of the
dataset's `LabelSpace`; two-dimensional methods see Z = 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from medplan.checkpoint import restore
from medplan.errors import MethodError
from medplan.plan.schema import Plan
from medplan.samples.cases import Case, CaseStore

__all__ = [
    "Augment", "Batch", "Element", "Heatmap", "Method", "Needs", "Phase", "Predictor",
    "Progress", "Proposal", "Sampler", "Situation", "Update", "Volume", "constant", "poly",
]  # fmt: skip

Element = dict[str, Any]
"""One training sample: NumPy arrays of fixed shape, and ``case``, the key of the case it was cut from (or
several keys joined by a space)."""

Batch = dict[str, Any]
"""Elements stacked into tensors on the device; ``case`` is a list of texts."""

Sampler = Callable[[CaseStore, np.random.Generator], Element]
"""Draws one element; pure in (store, generator) and picklable."""

Augment = Callable[[Batch, torch.Generator], Batch]
"""Augments a batch on the device; pure in (batch, generator)."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method asks of data and planner, declared rather than coded.

    Attributes:
        dims: dimensions it can work in, preferred first.
        roles: roles of cases that a fold must have at least one of.
        optional_roles: roles that are used where there are such cases.
        encoders: names it can take, preferred first.
        patch_multiple: every side of the patch (the slice axis of a 2-D patch apart) is a multiple of this.
        grid: ``isotropic`` resamples to 1.5 mm; ``squeezed`` to a fixed shape; ``native`` keeps each case's
            grid.
        normalisation: ``auto`` by modality (CT dataset statistics, MR z-score, RGB unit); ``unit`` [0, 1], of
            CT between the percentiles of the dataset's foreground, else of each case.
        whole_image: the patch is the whole (padded) image rather than a part of it.
        pyramid: the planner shapes a convolutional encoder (`Plan.pyramid`).
        several_datasets: it can learn several datasets at once.
        prompts: predictions take boxes that a user gives, or finds them itself: see `Case.prompts`.
        new_classes: it segments classes that it has not learnt, shown by support cases (``predict
            --support``). The query case then holds the names of the classes in `Case.prompts` under
            ``classes``, and True under ``anywhere`` if they are not bound to a place.
        aligned: cases should lie in the space of the atlas; where they do not, the planner asks for an affine
            alignment (`Grid.align_to`).
        told_modality: it is told the modality of an image, or that it is unknown: a user's word for it is in
            `Case.prompts` under ``modality``.
    """

    dims: tuple[Literal[2, 3], ...] = (3, 2)
    roles: tuple[str, ...] = ("labelled",)
    optional_roles: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ("unet",)
    patch_multiple: int = 1
    grid: Literal["isotropic", "squeezed", "native"] = "isotropic"
    normalisation: Literal["auto", "unit"] = "auto"
    whole_image: bool = False
    pyramid: bool = False
    several_datasets: bool = False
    prompts: bool = False
    new_classes: bool = False
    aligned: bool = False
    told_modality: bool = False


@dataclass(frozen=True, kw_only=True)
class Situation:
    """The facts that decide which method fits, and how it is set up; made from fingerprints, before any
    plan.

    `encoder` and `encoder_weights` are what the user named; `without_weights` says that the user asked for
    random weights. `memory_bytes` is what a training step may take, None where that is not yet known. `like`
    is the plan of the run that training will start from; `datasets` are the names.
    """

    num_datasets: int
    num_labelled: int
    num_unlabelled: int
    num_classes: int
    domains: tuple[str, ...]
    modalities: tuple[str, ...]
    is_picture: bool
    spacing_mm: tuple[float, float, float] | None
    median_shape: tuple[int, int, int]
    has_novel_classes: bool = False
    encoder: str | None = None
    encoder_weights: str | None = None
    without_weights: bool = False
    memory_bytes: int | None = None
    like: Plan | None = None
    datasets: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """How a method would go about a situation.

    Attributes:
        fits: whether it can be used at all.
        score: 0 to 100, to rank the methods that fit; the planner recommends the highest.
        reason: one sentence for the table.
        dims, encoder: None takes the first of `Needs`.
        encoder_weights: per encoder the published file to start from, unless the user names one or none.
        iterations, batch_size, lr, weight_decay: None for batch_size lets the planner fill the memory.
        patch_size: None lets the planner fill the memory; where cases are squeezed, the shape they are
            squeezed to.
        spacing_mm: (z, y, x) of the grid; None lets the planner choose.
        config: the method's own numbers, where they differ from the defaults.
        extra: volumes to preprocess besides, see `DatasetPlan.extra`.
        reasons: one line per choice above, by key.
    """

    fits: bool
    score: int
    reason: str
    dims: Literal[2, 3] | None = None
    encoder: str | None = None
    encoder_weights: Mapping[str, str] = field(default_factory=dict)
    iterations: int = 25_000
    batch_size: int | None = None
    lr: float = 1e-3
    weight_decay: float = 3e-5
    patch_size: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training stands: `step` of `num_steps` in `phase`; `fraction` is step / num_steps in [0, 1)."""

    phase: str
    step: int
    num_steps: int

    @property
    def fraction(self) -> float:
        return self.step / self.num_steps


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """A square table of numbers between things that a method has learnt about, for the report.

    Attributes:
        title: what it shows.
        names: of rows and columns.
        values: per row as many numbers as there are names.
        limits: numbers that get the lightest and the darkest colour.
    """

    title: str
    names: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    limits: tuple[float, float] = (-1.0, 1.0)


def poly(fraction: float) -> float:
    """Return the factor (1 - fraction)^0.9 of the base learning rate."""
    return float((1.0 - fraction) ** 0.9)


def constant(fraction: float) -> float:
    """Return 1: the base learning rate throughout."""
    return 1.0


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of training with its own data, optimisers and schedule.

    Attributes:
        name: unique within the method.
        num_steps: optimiser steps.
        batch_size: elements per step, over all ranks.
        sample: draws one element.
        augment: runs on the device after collation, or None.
        schedule: factor of every optimiser's base learning rate at a fraction of the phase.
        validate: whether validation by `Method.predictor` makes sense during this phase.
    """

    name: str
    num_steps: int
    batch_size: int
    sample: Sampler
    augment: Augment | None = None
    schedule: Callable[[float], float] = poly
    validate: bool = True


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A result of a method besides its segmentation, on the prepared grid of a case.

    Attributes:
        array: (C, Z, Y, X) float32.
        kind: ``logits`` are restored and written as a label map, as the segmentation is; ``image`` is
            intensities or scores; ``displacement`` (3, Z, Y, X) is vectors z, y, x in voxels, which are
            written as vectors x, y, z in mm of the world of the prepared grid.
    """

    array: npt.NDArray[np.float32]
    kind: Literal["logits", "image", "displacement"]


class Update(Protocol):
    """The one place for precision, averaging over ranks, clipping, the finite check and the step.

    `name` is a key of `Method.optimizers`. Gradients are those of that optimiser's parameters only; no call
    touches `.grad` of other parameters.
    """

    def minimise(self, loss: Tensor, name: str = "main", *, keep_graph: bool = False) -> None:
        """Take one step down `loss`: ``apply(gradients(loss, name), name)``."""

    def gradients(
        self, loss: Tensor, name: str = "main", *, keep_graph: bool = False, inputs: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        """Return d loss / d parameter, averaged over ranks, in the order of the optimiser's parameters.

        Behind them come d loss / d input, which are those of this rank. What the loss does not depend on has
        a zero gradient.
        """

    def apply(self, gradients: Sequence[Tensor], name: str = "main") -> None:
        """Clip, check that all are finite, and step the optimiser."""


class Predictor(Protocol):
    """What turns patches of one case into logits."""

    def __call__(
        self, patches: Tensor, corners: Sequence[tuple[int, int, int]], flipped: Sequence[int] = ()
    ) -> Tensor:
        """Return logits (B, K, Z, Y, X), float32, where K is `LabelSpace.num_outputs`.

        Args:
            patches: (B, C, Z, Y, X).
            corners: lowest voxel (z, y, x) of each patch in the preprocessed case; negative where the case
                was padded.
            flipped: axes (0 z, 1 y, 2 x) along which the patches show the case mirrored; the logits are to
                be mirrored alike. It matters to a method that looks at more of a case than its patches.
        """


class Method(nn.Module, ABC):
    """A method: everything that training changes is a parameter or a buffer of it.

    A subclass is found by its file's name: ``medplan/methods/<name>.py`` with ``METHOD = <class>``, or by an
    entry point in the group ``medplan.methods``.
    """

    needs: ClassVar[Needs]
    Config: ClassVar[type]

    @classmethod
    @abstractmethod
    def propose(cls, situation: Situation) -> Proposal:
        """Say whether and how this method would go about a situation."""

    @classmethod
    def settle(cls, plan: Plan) -> Plan:
        """Return the plan with those numbers of the method filled in that follow from its datasets.

        The planner calls it before it measures memory, and again after the last override; a plan that is
        settled already comes back as it is.
        """
        return plan

    @classmethod
    def lighter(cls, plan: Plan) -> Plan | None:
        """Return the plan with less memory per voxel, at the cost of time or precision, or None if there is
        no such.

        The planner takes it where a memory target asks for it. Nothing but `Plan.config` may change.
        """
        return None

    @abstractmethod
    def __init__(self, plan: Plan) -> None:
        """Build the networks. `plan.config` is read into `Config` with `medplan.records.decode`."""
        super().__init__()

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """Return the phases in order; their steps add up to `plan.training.iterations`."""

    @abstractmethod
    def optimizers(self, phase: str) -> dict[str, Optimizer]:
        """Return fresh optimisers for a phase. A parameter that is in none of them is frozen."""

    def begin(self, phase: str) -> dict[str, Optimizer]:
        """Return the optimisers of a phase, and freeze every parameter that is in none of them.

        Raises: MethodError if there is nothing to train.
        """
        optimizers = self.optimizers(phase)
        groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
        trained = {id(parameter) for group in groups for parameter in group["params"]}
        if not trained:
            raise MethodError(f"Phase '{phase}' has no parameters to train.")
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        return optimizers

    @abstractmethod
    def training_step(self, batch: Batch, update: Update, at: Progress) -> dict[str, Tensor]:
        """Compute the losses, call `update`, and return scalars to log, as detached tensors."""

    def footprint_step(self, batch: Batch, update: Update, at: Progress) -> None:
        """Take a step like `training_step` on tensors without values (device ``meta``), to be measured.

        Override it only if `training_step` looks at values (``.item()``, boolean indexing); then compute what
        holds the most memory, and call `update` as often as `training_step` does.
        """
        self.training_step(batch, update, at)

    def load_encoder(self, weights: Mapping[str, Tensor]) -> None:
        """Fill the encoder from a published weight file (`Plan.encoder_weights`), strictly.

        Raises: MethodError if the method has no encoder with published weights; CheckpointError listing the
            tensors that are missing or odd.
        """
        raise MethodError(
            f"{type(self).__name__} takes no encoder weights; train it with '--encoder-weights none'."
        )

    def start_from(self, weights: Mapping[str, Tensor], plan: Plan, *, where: str) -> None:
        """Take over the weights of another run before training (``--from``).

        Args:
            weights: all of that run's.
            plan: that run's, which may have other datasets.
            where: named in errors.

        Raises: CheckpointError listing what does not fit.
        """
        restore(self, weights, where=where)

    def heatmaps(self) -> Mapping[str, Heatmap]:
        """Return what the report shows of what was learnt, by file name; nothing by default."""
        return {}

    @abstractmethod
    def predictor(self, case: Case, support: Sequence[Case]) -> Predictor:
        """Return what turns patches of `case` into logits, the method being in eval mode without gradients.

        `support` holds the cases of role `atlas` or `support` with their labels, where there are any.
        """

    def answers_at(
        self, case: Case, support: Sequence[Case], shape: tuple[int, int, int]
    ) -> Iterator[Tensor] | None:
        """Answer on another grid over the whole of `case`, if answers are not bound to the prepared grid.

        Outlines are sharper so than by interpolating logits. Called in eval mode without gradients.

        Args:
            case, support: as for `predictor`.
            shape: voxels (z, y, x) of the grid that is asked for; it covers the extent of the case.

        Returns: slabs (K, dz, y, x) of logits along z, float32, each within memory; None, the default, has
            the logits of `predictor` interpolated.
        """
        return None

    def extras(self, case: Case, support: Sequence[Case]) -> dict[str, Volume | float]:
        """Return what else the method can say of a case: volumes and figures by name; nothing by default.

        Called in eval mode without gradients, on ``--extras``; names become parts of file names.
        """
        return {}
