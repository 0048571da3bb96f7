"""How to predict, apart from with what."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medplan.errors import UsageError, did_you_mean
from medplan.method import Needs
from medplan.plan.schema import DatasetPlan, Plan

__all__ = ["Options", "choose_dataset", "expect_classes", "only"]

LabelMap = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to predict.

    Attributes:
        step: distance of neighbouring windows as a fraction of the window, in (0, 1].
        mirror: average over all mirrored versions of each window (8 times the work in 3-D, 4 times in 2-D;
            fewer where class names tell left from right, see `Plan.mirror_axes`).
        postprocessing: keep largest components where validation chose to.
        classes: names of the classes to write, regions with all that lies inside them; empty for all. The
            others become background.
        batch_size: windows per forward pass; None chooses by memory.
        output_size: height and width of the label maps of pictures; None takes each picture's own.
        prompt: what stands in for the box of an image that none is given for, for methods that take boxes:
            ``auto`` has a first look at the whole image find it, ``none`` takes the whole image.
        modality: of the images, for methods that are told it; None takes what the dataset says.
        anywhere: what an example shows can be anywhere in a scan, as a lesion can, and not only where others
            have it, as an organ; for methods that are shown their classes.
    """

    step: float = 0.5
    mirror: bool = False
    postprocessing: bool = True
    classes: tuple[str, ...] = ()
    batch_size: int | None = None
    output_size: tuple[int, int] | None = None
    prompt: Literal["auto", "none"] = "auto"
    modality: str | None = None
    anywhere: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.step <= 1:
            raise UsageError(f"--step {self.step}: the window step should be in (0, 1].")

    def prompts(self, needs: Needs) -> dict[str, Any]:
        """Return what a method is told beside the image, see `Case.prompts`.

        Raises: UsageError if it is told more than it listens to.
        """
        told: dict[str, Any] = {"mode": self.prompt}
        if self.modality is not None:
            if not needs.told_modality:
                raise UsageError("--modality: the method is not told the modality; leave it out.")
            told["modality"] = self.modality
        if self.anywhere:
            if not needs.new_classes:
                raise UsageError("--anywhere: the method is not shown its classes by examples; leave it out.")
            told["anywhere"] = True
        return told


def choose_dataset(plan: Plan, name: str | None, classes: Sequence[str] = ()) -> DatasetPlan:
    """Return the dataset whose labels to predict.

    Args:
        name: None for the only one, or the only one that has all of `classes`.

    Raises: UsageError if it is not known, or not clear which.
    """
    names = [dataset.name for dataset in plan.learned]
    if name is not None and name not in names:
        raise UsageError(
            f"The model has not learnt '{name}'{did_you_mean(name, names)}; it knows {', '.join(names)}."
        )
    if name is None and len(names) > 1:
        fitting = [each.name for each in plan.learned if set(classes) <= set(each.labels.names)]
        if not classes or len(fitting) != 1:
            which = f"; of these {', '.join(fitting)} have these classes" if classes and fitting else ""
            raise UsageError(
                f"The model learnt {', '.join(names)}{which}. Say whose classes to predict with "
                "--dataset-labels NAME."
            )
        name = fitting[0]
    return plan.dataset(name or names[0])


def expect_classes(classes: Sequence[str], dataset: DatasetPlan) -> None:
    """Raise UsageError for a class that the dataset does not have."""
    names = dataset.labels.names
    for name in classes:
        if name not in names:
            raise UsageError(
                f"The model has no class '{name}'{did_you_mean(name, names)}; it knows {', '.join(names)}."
            )


def only(label: LabelMap, classes: Sequence[str], dataset: DatasetPlan) -> LabelMap:
    """Return the label map (Z, Y, X) of the named classes alone; regions hold what lies inside them too.

    Raises: UsageError for a class that the dataset does not have.
    """
    if not classes:
        return label
    expect_classes(classes, dataset)
    labels, kept = dataset.labels, np.zeros_like(label)
    written = labels.decode(np.arange(len(labels.names) + 1))[1:]
    for name, values, value in zip(labels.names, labels.values, written.tolist(), strict=True):
        if name in classes:
            kept[np.isin(label, (*values, value))] = value
    return kept
