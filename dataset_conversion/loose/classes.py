"""Which class each label file of a case, or each segment in it, stands for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dataset_conversion.loose.arrange import Arranged
from dataset_conversion.loose.names import Found
from dataset_conversion.volumes import Segment, segments
from medplan.errors import DataError

__all__ = ["Classes", "Drawn", "classes_of"]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A label file and what it becomes.

    Attributes:
        value: what every voxel of a mask becomes; None if the file holds several classes.
        segments: the segments of 3D Slicer that have names, with what each becomes.
        is_part: whether other files of the case hold further parts of the same class.
    """

    path: Path
    value: int | None = None
    segments: Mapping[Segment, int] = field(default_factory=dict)
    is_part: bool = False


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What the label files of all cases become.

    Attributes:
        drawn: by case.
        values: of the classes that names of files or segments name.
        single: what all label files are called beyond their scans, where there is one per case.
        notes: what may surprise, one sentence each.
    """

    drawn: Mapping[str, tuple[Drawn, ...]]
    values: Mapping[str, int]
    single: str
    notes: tuple[str, ...]


def classes_of(cases: Sequence[Arranged], source: Path, known: Mapping[str, int]) -> Classes:
    """Give the classes that files and segments name their values; numbers in label files stay as they are.

    Args:
        known: values of names that were given before; they stay.

    Raises: DataError if a case has several label files that do not say what each of them is.
    """
    labelled = [case for case in cases if case.labels]
    are_masks = any(len(case.labels) > 1 and _name_classes(case) for case in labelled)
    values = {name.casefold(): value for name, value in known.items()}
    spelled: dict[str, str] = {}

    notes: list[str] = []

    def value_of(name: str, stored: int | None = None) -> int:
        key = name.casefold()
        if key not in values:
            free = (value for value in range(1, len(values) + 2) if value not in values.values())
            values[key] = next(free) if stored is None or stored in values.values() else stored
            if stored not in (None, values[key]):
                notes.append(
                    f"a segment '{name}' is stored as {stored}, which is another class elsewhere, and "
                    f"becomes the class {values[key]}; give both segments the same name if they are the same."
                )
        spelled.setdefault(key, name)
        return values[key]

    if are_masks:
        for name in sorted({name for case in labelled for _, name in case.labels if name}, key=str.casefold):
            value_of(name)
    drawn = {case.id: _drawn(case, source, value_of, are_masks=are_masks) for case in labelled}
    names = {name for case in labelled for _, name in case.labels}
    alone = next(iter(names)) if len(names) == 1 and not are_masks else ""
    has_segments = any(each.segments for files in drawn.values() for each in files)
    numbers = [
        file.path for files in drawn.values() for file in files if file.value is None and not file.segments
    ]
    if (are_masks or has_segments) and numbers:
        notes.append(
            f"{len(numbers)} label file(s) name no class, for instance {_place(numbers[0], source)}; their "
            "numbers are taken for those of the named classes."
        )
    if len(names - {""}) > 1 and not are_masks:
        shown = ", ".join(sorted(names - {""})[:5])
        notes.append(
            f"the names of label files differ beyond those of their scans ({shown}); one file per case is "
            "taken to hold all classes as numbers."
        )
    if are_masks:
        notes += _missing(labelled)
    return Classes(
        drawn=drawn,
        values={name: values[key] for key, name in spelled.items()},
        single=alone if not has_segments else "",
        notes=tuple(notes),
    )


def _name_classes(case: Arranged) -> bool:
    names = [name.casefold() for _, name in case.labels]
    return all(names) and len(set(names)) == len(names)


def _drawn(
    case: Arranged, source: Path, value_of: Callable[..., int], *, are_masks: bool
) -> tuple[Drawn, ...]:
    if len(case.labels) == 1:
        label, name = case.labels[0]
        if are_masks and name:
            return (Drawn(path=label.path, value=value_of(name)),)
        found = segments(label.path)
        named = {each: value_of(each.name, each.value) if each.name else each.value for each in found}
        return (Drawn(path=label.path, segments=named),)
    if _name_classes(case):
        return tuple(Drawn(path=label.path, value=value_of(name)) for label, name in case.labels)
    labels = [label for label, _ in case.labels]
    if not any(name for _, name in case.labels) and len({label.stem for label in labels}) == len(labels):
        return tuple(Drawn(path=label.path, value=1, is_part=True) for label in labels)
    raise _two_labels(case.scans[0].path, [label.path for label in labels], source)


def _two_labels(scan: Path, labels: Sequence[Path], source: Path) -> DataError:
    """Return the error about label files of which it is not clear what each of them is."""
    shown = " and ".join(_place(label, source) for label in labels[:2])
    return DataError(
        f"{source}: two labels belong to '{_place(scan, source)}': {shown}; join them into one file, move "
        "one of them away, or, if they are masks of different classes, name each by its class (liver)."
    )


def _missing(cases: Sequence[Arranged]) -> list[str]:
    """Say which masks some cases lack: it is not known whether they were forgotten."""
    everywhere = sorted({name for case in cases for _, name in case.labels if name}, key=str.casefold)
    lacking = [
        f"{case.id} (no {missing[0]}{', ...' if len(missing) > 1 else ''})"
        for case in cases
        if all(name for _, name in case.labels) and (missing := _others(everywhere, case.labels))
    ]
    if not lacking:
        return []
    return [
        f"{len(lacking)} labelled case(s) lack masks that others have, and are taken to have nothing there: "
        f"{', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}."
    ]


def _others(names: Iterable[str], labels: Sequence[tuple[Found, str]]) -> list[str]:
    own = {name.casefold() for _, name in labels}
    return [name for name in names if name.casefold() not in own]


def _place(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix()
