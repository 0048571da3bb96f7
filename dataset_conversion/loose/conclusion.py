"""What dataset.json says of the labels once all of them were read: names of classes, and notes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset_conversion.loose.arrange import Arranged
from dataset_conversion.loose.cases import Made
from dataset_conversion.loose.classes import Classes
from dataset_conversion.loose.memory import UNNAMED, Memory

__all__ = ["Conclusion"]

SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """Is called when everything is written, and returns the labels and notes of dataset.json.

    Attributes:
        arranged: cases as they were found.
        made: cases as they were written.
        colours: names of label values that were colours.
        source, target: folders.
        notes: what was found before.
    """

    arranged: Sequence[Arranged]
    made: Made
    classes: Classes
    colours: Mapping[int, str]
    memory: Memory
    source: Path
    target: Path
    notes: Sequence[str]

    def __call__(
        self, present: Mapping[str, Collection[int]], left_out: Sequence[str]
    ) -> tuple[Mapping[str, Any], Sequence[str]]:
        """Name the values that occur in the label of each case; names that were given by hand stay."""
        names = self._names({value for values in present.values() for value in values} - {0})
        notes = [*self.notes, *left_out, *self._empty(present), *self._overlaps(names)]
        notes += self._staying(present)
        if not present:
            notes.append(
                "no label was found; call labels like their scans, with 'label', 'mask' or 'seg' in the "
                "name, or put them into a folder of such a name, and convert again."
            )
        if self.memory.labels:
            known = self.memory.names.keys() | self.memory.unnamed.keys()
            added = {name: value for value, name in names.items() if value not in known}
            return dict(self.memory.labels) | added, notes
        return {names[value]: value for value in sorted(names)}, notes

    def _names(self, values: set[int]) -> dict[int, str]:
        names = dict(self.memory.names)
        given = {value: name for name, value in self.classes.values.items()} or dict(self.colours)
        if self.classes.single and values == {1}:
            given = {1: self.classes.single}
        for value in sorted(values | given.keys() | self.memory.unnamed.keys()):
            if value not in names:
                name = given.get(value, UNNAMED.format(value))
                names[value] = name if name not in names.values() else f"{name} ({value})"
        return names

    def _empty(self, present: Mapping[str, Collection[int]]) -> list[str]:
        files = {case.id: case.labels[0][0].path for case in self.arranged if case.labels}
        return [
            f"{files[case].relative_to(self.source).as_posix()}: only background, which says that nothing is "
            "there; delete it if it was not drawn yet."
            for case, values in present.items()
            if not set(values) - {0}
        ]

    def _overlaps(self, names: Mapping[int, str]) -> list[str]:
        found = [
            f"{case} ({names.get(one, one)} and {names.get(other, other)}, {count} voxels)"
            for case, pairs in sorted(self.made.overlaps.items())
            for (one, other), count in sorted(pairs.items())
        ]
        shown = ", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
        return [f"masks overlap, and the smaller one counts there: {shown}."] if found else []

    def _staying(self, present: Mapping[str, Collection[int]]) -> list[str]:
        files = [
            f"{case.id}{self.made.ending}"
            for case in self.made.cases
            if case.id not in present and (self.target / "labelsTr" / f"{case.id}{self.made.ending}").exists()
        ]
        return [
            f"labelsTr/{name}: has no label file in the source, and stays; delete it if it should not count."
            for name in files
        ]
