"""Scans and labels become cases by their names alone; no file is opened."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dataset_conversion.loose.channels import put_together
from dataset_conversion.loose.names import Found, class_in, class_in_folder, less, path_identifier

__all__ = ["Arranged", "Arrangement", "arrange"]

Words = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Arranged:
    """A case: its scans, one per channel, and its label files, each with the class that its name says."""

    id: str
    scans: tuple[Found, ...]
    labels: tuple[tuple[Found, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """All cases.

    Attributes:
        channels: words and name of each channel, in the order of `Arranged.scans`.
        notes: what does not fit, one sentence each.
    """

    channels: tuple[tuple[Words, str], ...]
    cases: tuple[Arranged, ...]
    notes: tuple[str, ...] = ()


def arrange(files: Sequence[Found], source: Path) -> Arrangement:
    """Put the channels of a case together, and give every label to its case.

    A label belongs to the case whose words it begins with, the most of them, else to the only one near by.

    Raises: DataError if cases have no channels in common, or two files are the same channel of a case.
    """
    scans = [file for file in files if not file.is_label]
    labels = [file for file in files if file.is_label]
    together = put_together(scans, labels, source)
    if any(word.startswith("_") for words, _ in together.channels for word in words):
        labels = [replace(label, channel=()) for label in labels]  # words as those of the scans are
    finder = _Finder(
        [*(scans for _, scans in together.cases), *((scan,) for scan in together.left_out)], source
    )
    given: defaultdict[int, list[Found]] = defaultdict(list)
    notes = list(together.notes)
    for label in labels:
        fitting = finder.cases_of(label)
        place = label.path.relative_to(source).as_posix()
        if not fitting:
            notes.append(f"{place}: there is no scan of that name, the label is left out.")
        elif len(fitting) > 1:
            some = " or ".join(
                finder.scans[case][0].path.relative_to(source).as_posix() for case in fitting[:2]
            )
            notes.append(
                f"{place}: it may belong to {some}, so that the label is left out; name it like one of them, "
                "or, if they are channels of one case, end their names with _0000 and _0001."
            )
        else:
            given[fitting[0]].append(label)
    times = Counter(name for name, _ in together.cases)
    cases = [
        Arranged(
            id=name if times[name] == 1 else path_identifier(scans[0]),
            scans=scans,
            labels=_with_classes(given[number], scans[0], finder.everywhere),
        )
        for number, (name, scans) in enumerate(together.cases)
    ]
    return Arrangement(channels=together.channels, cases=tuple(cases), notes=tuple(notes))


def _with_classes(
    labels: Sequence[Found], scan: Found, everywhere: Collection[str]
) -> tuple[tuple[Found, str], ...]:
    names = [class_in(label, scan, everywhere) for label in labels]
    if len(labels) > 1 and not any(names):
        names = [class_in_folder(label, scan) for label in labels]
    return tuple(zip(labels, names, strict=True))


class _Finder:
    """Finds cases by the words of their scans and by the folders that they lie in."""

    def __init__(self, cases: Sequence[Sequence[Found]], source: Path) -> None:
        self.source = source
        self.scans = cases
        self.everywhere = set[str]()
        if len(cases) > 1:
            self.everywhere = set.intersection(*(set(scan.words) for scans in cases for scan in scans))
        self.by_words: tuple[defaultdict[Words, set[int]], ...] = tuple(defaultdict(set) for _ in range(5))
        self.by_folder: defaultdict[Path, set[int]] = defaultdict(set)
        for number, scans in enumerate(cases):
            for scan in scans:
                for index, words in zip(self.by_words, self._views(scan), strict=True):
                    index[words].add(number)
                for folder in scan.path.parents:
                    self.by_folder[folder].add(number)

    def cases_of(self, label: Found) -> list[int]:
        """Return the case of a label: one, none, or those near by of which it is not clear which one."""
        views = list(zip(self.by_words, self._views(label), strict=True))
        tries = [(index, [words[:end] for end in range(len(words), 0, -1)]) for index, words in views]
        # liver_p1.nii.gz beside p1.nii.gz
        ends = [label.stem_key[start:] for start in range(len(label.stem_key))]
        tries.append((self.by_words[3], ends))
        for index, beginnings in tries:
            cases: set[int] = next((index[words] for words in beginnings if words in index), set())
            if len(cases) == 1:
                return list(cases)
        for folder in label.path.parents:
            near = self.by_folder.get(folder, set())
            if folder == self.source:
                return list(near) if len(near) == 1 else []
            if near:
                return sorted(near)
        return []

    def _views(self, file: Found) -> tuple[Words, ...]:
        """Return the words of a name in the order in which they are trusted."""
        return file.words, file.key, file.stem, file.stem_key, less(file.words, self.everywhere)
