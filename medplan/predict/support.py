"""Labelled examples that a user gives with the images, for methods that segment what they are shown.

An example is ``IMAGE:LABEL`` (several channels: ``IMAGE0,IMAGE1:LABEL``), or the name of a labelled case of
the raw dataset that the model was made for. The classes to be segmented are those of the examples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medplan.data.checks import differences
from medplan.data.dataset import open_dataset
from medplan.data.images import Geometry, Image, fit_channels, read_image, read_label
from medplan.data.labels import LabelSpace
from medplan.errors import DataError
from medplan.plan.schema import DatasetPlan, Grid
from medplan.preprocess.atlas import Atlas
from medplan.preprocess.prepare import prepare
from medplan.samples.cases import Case

__all__ = ["Example", "classes_shown", "find_examples", "prepare_examples"]

MOST_CLASSES = 250
"""Label maps have fewer, images as a rule have more."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image, one file per channel, and its label map.

    Attributes:
        labels: what the values of the label map mean; None if nobody says.
    """

    name: str
    images: tuple[Path, ...]
    label: Path
    labels: LabelSpace | None = None


def find_examples(
    texts: Sequence[str], *, dataset: str, raw_folder: Callable[[str], Path]
) -> tuple[Example, ...]:
    """Read what was written after ``--support``.

    Args:
        dataset: the raw dataset in which cases are looked up.
        raw_folder: where a raw dataset lies, by name.

    Raises: DataError if there is no such file or case, or it has no label.
    """
    examples = []
    for number, text in enumerate(texts):
        images, colon, label = text.rpartition(":")
        if colon:
            paths = tuple(Path(part) for part in images.split(","))
            for path in (*paths, Path(label)):
                if not path.exists():
                    raise DataError(f"--support {text}: there is no file '{path}'.")
            examples.append(Example(name=f"example{number}", images=paths, label=Path(label)))
            continue
        if Path(text).exists():
            raise DataError(
                f"--support {text}: this is a file without its label map; write IMAGE:LABEL, several "
                "channels with commas between them, or the id of a labelled case."
            )
        raw = open_dataset(raw_folder(dataset))
        case = raw.case(text)
        if case.label is None:
            raise DataError(f"--support {text}: this case of '{dataset}' has no label.")
        examples.append(Example(name=case.id, images=case.images, label=case.label, labels=raw.labels))
    return tuple(examples)


def prepare_examples(
    examples: Sequence[Example], plan: DatasetPlan, grid: Grid, *, atlas: Atlas | None = None
) -> tuple[DatasetPlan, tuple[Case, ...]]:
    """Bring examples onto the grid of a plan.

    Returns: the plan of the dataset with the classes that are shown, and the cases with their codes.
    Raises: DataError if a label map is missing, lies on another grid than its image, shows nothing, or
        nothing that the grid keeps; if channels are missing; or if an image has no spacing and the plan one.
    """
    read = [_read(example, plan, grid) for example in examples]
    labels = classes_shown([(example, raw) for example, (_, raw) in zip(examples, read, strict=True)])
    shown = replace(plan, labels=labels, novel=(), extra={})
    cases = []
    for example, (image, raw) in zip(examples, read, strict=True):
        key = f"{plan.name}/{example.name}"
        cases.append(prepare(image, shown, grid, label=raw, key=key, atlas=atlas)[0])
    for code, name in enumerate(labels.names, 1):
        if not any(code in case.locations for case in cases):
            raise DataError(
                f"example '{cases[0].id}': class '{name}' is too small for the model's grid of "
                f"{grid.spacing_mm} mm (z, y, x), where no voxel of it is left; show a larger one."
            )
    return shown, tuple(cases)


def _read(example: Example, plan: DatasetPlan, grid: Grid) -> tuple[Image, npt.NDArray[np.integer]]:
    """Return the image of an example with all its channels, and the label map on its grid."""
    if not example.label.exists():
        raise DataError(f"example '{example.name}': there is no label map '{example.label}'.")
    image = read_image(example.images)
    raw, geometry = read_label(example.label)
    if len(image.array) != len(plan.channels):
        try:
            image = Image(
                array=fit_channels(image.array, len(plan.channels), example.images[0]),
                geometry=image.geometry,
            )
        except DataError:
            raise DataError(
                f"example '{example.name}': the model sees {len(plan.channels)} channels "
                f"({', '.join(plan.channels)}), the example has {len(image.array)}; give one file per "
                "channel, in this order."
            ) from None
    if grid.spacing_mm is not None and image.geometry.spacing_mm is None:
        raise DataError(
            f"example '{example.name}': the model works at {grid.spacing_mm} mm (z, y, x), but the example "
            "has no spacing; give it as a volume that has."
        )
    _expect_one_grid(example, geometry, image.geometry)
    return image, raw


def _expect_one_grid(example: Example, label: Geometry, image: Geometry) -> None:
    """Raise DataError if a label map lies otherwise than its image.

    Labels of a dataset count voxel by voxel whatever their header says, as in training.
    """
    different = differences(label, image)
    if example.labels is None and label.orientation != image.orientation:
        different["orientation"] = f"{label.orientation} vs {image.orientation}"
    for what in ("shape", "orientation", "spacing"):
        if what in different:
            raise DataError(
                f"example '{example.name}': label map and image differ in {what}: {different[what]} "
                f"[{example.label}]. Export the label map again on the grid of the image."
            )


def classes_shown(maps: Sequence[tuple[Example, npt.NDArray[np.integer]]]) -> LabelSpace:
    """Return the classes whose values occur in the label maps, by name where the example's dataset has names.

    Raises: DataError if there are none.
    """
    found: dict[tuple[int, ...], str] = {}
    ignore = next((e.labels.ignore for e, _ in maps if e.labels and e.labels.ignore is not None), None)
    for example, raw in maps:
        known: dict[int, tuple[tuple[int, ...], str]] = {}
        if example.labels is not None and example.labels.is_exclusive:
            for name, values in zip(example.labels.names, example.labels.values, strict=True):
                known |= {value: (values, name) for value in values}
        for value in np.unique(raw).tolist():
            if value not in (0, ignore):
                values, name = known.get(value, ((value,), f"label {value}"))
                found.setdefault(values, name)
    if not found:
        named = ", ".join(str(example.label) for example, _ in maps)
        raise DataError(f"{named}: the label map of an example is empty, so there is nothing to look for.")
    if len(found) > MOST_CLASSES:
        raise DataError(
            f"{maps[0][0].label}: {len(found)} different values; is this an image? Write IMAGE:LABEL, in "
            "this order."
        )
    ordered = sorted(found)
    return LabelSpace(names=tuple(found[values] for values in ordered), values=tuple(ordered), ignore=ignore)
