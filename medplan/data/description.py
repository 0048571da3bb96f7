"""dataset.json of nnU-Net v2, nnU-Net v1 and the Medical Segmentation Decathlon, read into one record."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from medplan.data.formats import IMAGE_ENDINGS
from medplan.data.labels import LabelSpace
from medplan.errors import DataError
from medplan.records import load_json

__all__ = ["Description", "labels_entry", "read_description"]

READ_KEYS = (
    "channel_names",
    "modality",
    "labels",
    "regions_class_order",
    "file_ending",
    "dataset",
    "training",
    "test",
    "domain",
    "patient",
    "splits",
    "exclude",
    "others_are_background",
)
FREE_KEYS = (
    "name",
    "description",
    "reference",
    "licence",
    "license",
    "release",
    "citation",
    "numTraining",
    "numTest",
    "tensorImageSize",
    "overwrite_image_reader_writer",
    "converted_by",
)
SPLIT_ROLES = ("labelled", "unlabelled", "validation", "test")
TYPO_LIKENESS = 0.8
"""Keys that are not known are free text, unless they are this similar to one that is read."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What dataset.json says.

    Attributes:
        where: path of the file, for messages.
        channels: names, in order.
        labels: classes and raw values.
        file_ending: of image files; None where the file does not say.
        paths: nnU-Net v2's ``dataset`` dictionary, entry by case.
        training, test: entries of the Decathlon's lists.
        domain, patient: by case.
        splits: published splits by name, each a map from role to cases.
        exclude: cases to leave out.
    """

    where: str
    channels: tuple[str, ...]
    labels: LabelSpace
    file_ending: str | None = None
    paths: Mapping[str, Any] = field(default_factory=dict)
    training: tuple[Any, ...] = ()
    test: tuple[Any, ...] = ()
    domain: Mapping[str, str] = field(default_factory=dict)
    patient: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()


def read_description(folder: Path) -> Description:
    """Read ``dataset.json`` in a folder.

    Raises: DataError that names the file, the key, what was expected and what was found. Keys that are not
        known are free text, except those that look like a misspelt known key.
    """
    path = folder / "dataset.json"
    where = str(path)
    data = load_json(path, error=DataError, hint="; a raw dataset needs a dataset.json")
    if not isinstance(data, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(data).__name__}.")
    _refuse_typos(data, where)
    return Description(
        where=where,
        channels=_channels(data, where),
        labels=_labels(data, where),
        file_ending=_file_ending(data, where),
        paths=_object(data, "dataset", where),
        training=_list(data, "training", where),
        test=_list(data, "test", where),
        domain=_texts(data, "domain", where),
        patient=_texts(data, "patient", where),
        splits=_splits(data, where),
        exclude=tuple(str(name) for name in _list(data, "exclude", where)),
    )


def labels_entry(labels: LabelSpace) -> dict[str, int | list[int]]:
    """Return what dataset.json says of labels under that key; regions have an order besides."""
    entry: dict[str, int | list[int]] = {"background": 0}
    for name, values in zip(labels.names, labels.values, strict=True):
        entry[name] = values[0] if len(values) == 1 else list(values)
    if labels.ignore is not None:
        entry["ignore"] = labels.ignore
    return entry


def _refuse_typos(data: Mapping[str, Any], where: str) -> None:
    for key in data:
        if key in READ_KEYS or key in FREE_KEYS:
            continue
        near = get_close_matches(key, READ_KEYS, n=1, cutoff=TYPO_LIKENESS)
        if near:
            raise DataError(
                f"{where}: unknown key '{key}' (did you mean '{near[0]}'?). Free text may have any name that "
                "is not this close to a known key."
            )


def _object(data: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = data.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DataError(
            f"{where}: '{key}' should be an object with one entry per case, found {_shown(value)}."
        )
    return value


def _list(data: Mapping[str, Any], key: str, where: str) -> tuple[Any, ...]:
    value = data.get(key)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(f"{where}: '{key}' should be a list, found {_shown(value)}.")
    return tuple(value)


def _texts(data: Mapping[str, Any], key: str, where: str) -> Mapping[str, str]:
    entries = _object(data, key, where)
    for case, value in entries.items():
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise DataError(f"{where}: '{key}.{case}' should be a name, found {_shown(value)}.")
    return {case: str(value) for case, value in entries.items()}


def _splits(data: Mapping[str, Any], where: str) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    splits = _object(data, "splits", where)
    for name, roles in splits.items():
        if not isinstance(roles, Mapping) or not set(roles) <= set(SPLIT_ROLES):
            raise DataError(
                f"{where}: 'splits.{name}' should be an object with lists of cases under "
                f"{', '.join(SPLIT_ROLES)}, found {_shown(roles)}."
            )
        listed = [case for role in roles for case in _list(roles, role, where)]
        twice = sorted(case for case, number in Counter(map(str, listed)).items() if number > 1)
        if twice:
            raise DataError(f"{where}: 'splits.{name}' names the case '{twice[0]}' twice.")
    return {
        name: {role: tuple(str(case) for case in cases) for role, cases in roles.items()}
        for name, roles in splits.items()
    }


def _channels(data: Mapping[str, Any], where: str) -> tuple[str, ...]:
    key = "channel_names" if "channel_names" in data else "modality"
    value = data.get(key)
    if value is None:
        raise DataError(f'{where}: the key \'channel_names\' is missing; write for example {{"0": "T1"}}.')
    if isinstance(value, list):
        value = {str(number): name for number, name in enumerate(value)}
    if (
        not isinstance(value, Mapping)
        or not value
        or not all(isinstance(name, str) for name in value.values())
    ):
        raise DataError(
            f'{where}: \'{key}\' should name each channel, as {{"0": "T1"}}, found {_shown(value)}.'
        )
    try:
        numbered = {int(number): name for number, name in value.items()}
    except ValueError:
        raise DataError(f"{where}: the channels of '{key}' should be numbers, found {list(value)}.") from None
    if sorted(numbered) != list(range(len(numbered))):
        raise DataError(
            f"{where}: the channels of '{key}' should be numbered 0, 1, ..., found {sorted(numbered)}."
        )
    return tuple(str(numbered[number]) for number in range(len(numbered)))


def _file_ending(data: Mapping[str, Any], where: str) -> str | None:
    value = data.get("file_ending")
    if value is None:
        return None
    ending = str(value).lower()
    ending = ending if ending.startswith(".") else f".{ending}"
    if ending not in IMAGE_ENDINGS:
        raise DataError(
            f"{where}: 'file_ending' should be one of {', '.join(IMAGE_ENDINGS)}, found {_shown(value)}."
        )
    return ending


def _labels(data: Mapping[str, Any], where: str) -> LabelSpace:
    value = data.get("labels")
    if not isinstance(value, Mapping) or not value:
        raise DataError(
            f'{where}: \'labels\' should give each class its value, as {{"background": 0, "liver": 1}}, '
            f"found {_shown(value)}."
        )
    classes = _values_by_name(value, where)
    ignore = classes.pop("ignore", None)
    if ignore is not None and len(ignore) != 1:
        raise DataError(f"{where}: 'labels.ignore' should be one value, found {list(ignore)}.")
    background = [name for name, values in classes.items() if values == (0,)]
    named = next((name for name in classes if name.lower() == "background"), None)
    if named is not None and classes[named] != (0,):
        raise DataError(f"{where}: 'labels.{named}' should be 0, found {list(classes[named])}.")
    if len(background) > 1:
        raise DataError(f"{where}: two labels have the value 0: {background}; 0 is the background.")
    for name in background:
        del classes[name]
    return _label_space(data, classes, ignore[0] if ignore else None, where)


def _label_space(
    data: Mapping[str, Any], classes: Mapping[str, tuple[int, ...]], ignore: int | None, where: str
) -> LabelSpace:
    has_regions = any(len(values) > 1 for values in classes.values())
    order = data.get("regions_class_order")
    if has_regions and order is None:
        several = next(name for name, values in classes.items() if len(values) > 1)
        raise DataError(
            f"{where}: the class '{several}' is a region of several values, so that 'regions_class_order' is "
            "needed: per region the value that it writes into predicted label files."
        )
    if order is not None and not (isinstance(order, list) and all(type(item) is int for item in order)):
        raise DataError(
            f"{where}: 'regions_class_order' should be a list of integers, found {_shown(order)}."
        )
    if has_regions and order is not None and len(order) != len(classes):
        raise DataError(
            f"{where}: 'regions_class_order' should have {len(classes)} entries, one per region, found "
            f"{len(order)}."
        )
    if ignore is not None and any(ignore in values for values in classes.values()):
        raise DataError(f"{where}: the value {ignore} is both 'ignore' and a class.")
    try:
        return LabelSpace(
            names=tuple(classes),
            values=tuple(classes.values()),
            region_order=tuple(order) if has_regions and order is not None else None,
            ignore=ignore,
            others_are_background=data.get("others_are_background") is True,
        )
    except ValueError as error:
        raise DataError(f"{where}: 'labels': {error}.") from None


def _values_by_name(labels: Mapping[str, Any], where: str) -> dict[str, tuple[int, ...]]:
    """Read name -> value (v2) or value -> name (v1 and Decathlon); region values in ascending order."""
    if all(isinstance(name, str) for name in labels.values()) and all(_is_integer(key) for key in labels):
        names = list(labels.values())
        if len(set(names)) != len(names):
            raise DataError(f"{where}: 'labels' gives two values the same name: {sorted(names)}.")
        return {name: (int(key),) for key, name in sorted(labels.items(), key=lambda item: int(item[0]))}
    result: dict[str, tuple[int, ...]] = {}
    for name, value in labels.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(_is_integer(item) for item in values):
            raise DataError(
                f"{where}: 'labels.{name}' should be an integer or a list of integers, found {_shown(value)}."
            )
        result[name] = tuple(sorted({int(item) for item in values}))
    return result


def _is_integer(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"-?[0-9]+", value) is not None
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
