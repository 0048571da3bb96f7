"""Labelled examples that a user gives with the images, for methods that segment what they are shown.

An example is ``IMAGE:LABEL`` (several channels: ``IMAGE0,IMAGE1:LABEL``), or the name of a labelled case of
the raw dataset that the model was made for. The classes to be segmented are those of the examples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medplan.data.dataset import open_dataset
from medplan.data.images import read_image, read_label
from medplan.data.labels import LabelSpace
from medplan.errors import DataError
from medplan.plan.schema import DatasetPlan, Grid
from medplan.preprocess.align import Atlas
from medplan.preprocess.prepare import prepare
from medplan.samples.cases import Case

__all__ = ["Example", "classes_shown", "find_examples", "prepare_examples"]


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
    Raises: DataError if a label map has another shape than its image, or shows nothing.
    """
    read = [read_label(example.label)[0] for example in examples]
    labels = classes_shown(list(zip(examples, read, strict=True)))
    shown = DatasetPlan(
        name=plan.name,
        channels=plan.channels,
        modalities=plan.modalities,
        labels=labels,
        normalisations=plan.normalisations,
        folds=plan.folds,
        domains=plan.domains,
        file_ending=plan.file_ending,
    )
    cases = []
    for example, raw in zip(examples, read, strict=True):
        image = read_image(example.images, channels=len(plan.channels))
        key = f"{plan.name}/{example.name}"
        cases.append(prepare(image, shown, grid, label=raw, key=key, atlas=atlas)[0])
    return shown, tuple(cases)


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
    ordered = sorted(found)
    return LabelSpace(names=tuple(found[values] for values in ordered), values=tuple(ordered), ignore=ignore)
