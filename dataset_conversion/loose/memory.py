"""What an earlier conversion, or somebody by hand, wrote into dataset.json, and what of it stays."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medplan.data.description import read_description

__all__ = ["KEY", "UNNAMED", "Memory", "remember"]

KEY = "found_by_name"
"""Of dataset.json: which words of file names became which channel and class."""
UNNAMED = "label {}"
AUTOMATIC = re.compile(r"scan|channel \d+")
"""Names of channels that nobody has given."""
WRITTEN = frozenset({"name", "channel_names", "labels", "numTraining", "file_ending", "reference", "licence"})
WRITTEN_AGAIN = WRITTEN | {"notes", "patient", "regions_class_order", KEY}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """An earlier dataset.json.

    Attributes:
        names: of label values, as they are called by now.
        unnamed: label values that are called ``label 1``; a file that names them is welcome.
        labels: as they are written there, where some of them are regions; else empty.
        channels: names, in order.
        words: what each channel was called in file names.
        classes: values of classes by what they were called in file names.
        description: all of it.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    unnamed: Mapping[int, str] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    classes: Mapping[str, int] = field(default_factory=dict)
    description: Mapping[str, Any] = field(default_factory=dict)

    def channel_names(self, words: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
        """Return what channels are called: as before, also by hand, else as given."""
        before = dict(zip(self.words, self.channels, strict=False))
        kept = [before.get(word, name) for word, name in zip(words, names, strict=True)]
        if len(names) == len(self.channels) and (not self.words or len(names) == 1 or len(set(words)) == 1):
            kept = list(self.channels)
        return tuple(name if AUTOMATIC.fullmatch(old) else old for old, name in zip(kept, names, strict=True))

    def patient(self, case: str, found: Mapping[str, str]) -> str | None:
        """Return the patient of a case: as before, also by hand, else as found."""
        before: Mapping[str, str] = self.description.get("patient", {})
        return before.get(case, found.get(case))

    def kept(self, cases: set[str]) -> dict[str, Any]:
        """Return what was added to the description, as far as its cases are still there."""
        kept = {key: value for key, value in self.description.items() if key not in WRITTEN_AGAIN}
        kept["domain"] = {case: name for case, name in kept.get("domain", {}).items() if case in cases}
        kept["exclude"] = [case for case in kept.get("exclude", []) if case in cases]
        kept["splits"] = {
            name: {role: [case for case in ids if case in cases] for role, ids in roles.items()}
            for name, roles in kept.get("splits", {}).items()
        }
        if self.labels:
            kept["regions_class_order"] = self.description["regions_class_order"]
        return {key: value for key, value in kept.items() if value not in ({}, [])}


def remember(target: Path, source: Path) -> Memory:
    """Read the dataset.json of an earlier conversion, else the names in one of the source, if there is one.

    Raises: DataError if it is damaged.
    """
    path = target / "dataset.json"
    if not path.is_file():
        if source.is_dir() and (source / "dataset.json").is_file():
            given = remember(source, target)
            order = {key: given.description[key] for key in ("regions_class_order",) if given.labels}
            return replace(given, words=(), classes={}, description=order)
        return Memory()
    description = read_description(target)
    written = json.loads(path.read_text(encoding="utf-8"))
    labels = description.labels
    names = {v: name for name, values in zip(labels.names, labels.values, strict=True) for v in values[:1]}
    unnamed = {value: name for value, name in names.items() if name == UNNAMED.format(value)}
    names = {value: name for value, name in names.items() if value not in unnamed}
    if labels.ignore is not None:
        names[labels.ignore] = "ignore"
    words = written.get(KEY, {})
    return Memory(
        names=names,
        unnamed=unnamed,
        labels={} if labels.is_exclusive else written["labels"],
        channels=description.channels,
        words=tuple(words.get("channels", ())),
        classes=words.get("classes", {}),
        description=written,
    )
