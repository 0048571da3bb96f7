"""Which scans are channels of one case, by their names alone."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset_conversion.loose.names import CHANNELS, Found, identifier, less, numbered, shown
from medplan.errors import DataError

__all__ = ["Together", "put_together"]

Words = tuple[str, ...]
Group = Mapping[Words, Sequence[Found]]
"""Scans of one case by the words of their channel."""
NAMED = 3
"""Examples that a sentence names."""


@dataclass(frozen=True, kw_only=True)
class Together:
    """Scans by case.

    Attributes:
        channels: words and name of each channel.
        cases: id and scans, one per channel.
        left_out: scans of cases that lack a channel.
        notes: what does not fit, one sentence each.
    """

    channels: tuple[tuple[Words, str], ...]
    cases: tuple[tuple[str, tuple[Found, ...]], ...]
    left_out: tuple[Found, ...] = ()
    notes: tuple[str, ...] = ()


def put_together(scans: Sequence[Found], labels: Sequence[Found], source: Path) -> Together:
    """Put scans whose names differ in the words of a channel together.

    They stay apart where labels do: T1 and T2 of a patient, each with a label of its own, are two cases.

    Raises: DataError if cases have no channels in common, or two files are the same channel of a case.
    """
    scans = _numbered(scans, labels)
    everywhere = set(scans[0].channel).intersection(*(scan.channel for scan in scans))
    groups: defaultdict[Words, defaultdict[Words, list[Found]]] = defaultdict(lambda: defaultdict(list))
    for scan in scans:
        groups[scan.key][less(scan.channel, everywhere)].append(scan)
    if any(len(group) > 1 for group in groups.values()) and not _labelled_apart(scans, labels):
        return _joined(list(groups.values()), source)
    common = tuple(word for word in scans[0].channel if word in everywhere)
    name = "scan" if common[:1] == ("_0000",) else shown(common, scans[0])
    # Cases keep their ids when further channels join them.
    is_one_kind = all(set(scan.channel) == everywhere for scan in scans)
    return Together(
        channels=((common, name),),
        cases=tuple((identifier(scan, whole=not is_one_kind), (scan,)) for scan in scans),
    )


def _numbered(scans: Sequence[Found], labels: Sequence[Found]) -> Sequence[Found]:
    """Take the numbers of CASE_0000, CASE_0001 for channels, if it is clear that they are no cases."""
    found = [numbered(scan) for scan in scans]
    files = [file for file in found if file is not None]
    groups: defaultdict[Words, list[str]] = defaultdict(list)
    for file in files:
        groups[file.words[:-1]].append(file.channel[0])
    complete = sum(
        sorted(numbers) == [f"_{number:04d}" for number in range(len(numbers))] for numbers in groups.values()
    )
    is_one = len(groups) == 1 and len(scans) > 1 and all(label.words not in groups for label in labels)
    if len(files) < len(scans) or 2 * complete < len(groups) or is_one or _labelled_apart(scans, labels):
        return scans
    return files


def _labelled_apart(scans: Sequence[Found], labels: Sequence[Found]) -> bool:
    """Whether two scans that differ in their channel alone have a label each."""
    by_words = {scan.words: scan for scan in scans}
    labelled = {scan.words: scan for label in labels if (scan := _longest(label.words, by_words)) is not None}
    keys = Counter((numbered(scan) or scan).key for scan in labelled.values())
    return any(count > 1 for count in keys.values())


def _longest(words: Words, index: Mapping[Words, Found]) -> Found | None:
    return next((index[words[:end]] for end in range(len(words), 0, -1) if words[:end] in index), None)


def _joined(groups: Sequence[Group], source: Path) -> Together:
    """Make cases of the channels that at least half of them have; what does not fit is noted."""
    together = {channel for group in groups if len(group) > 1 for channel in group}
    candidates = [group for group in groups if together & group.keys()]
    counts = Counter(channel for group in candidates for channel in group)
    wanted = sorted((each for each, count in counts.items() if 2 * count >= len(candidates)), key=_order)
    complete = [group for group in candidates if set(wanted) <= group.keys()]
    if 2 * len(complete) < len(candidates):
        raise DataError(
            f"{source}: the cases differ in their channels: {_combinations(candidates)}; move away what "
            "should not count, or give files of the same kind the same word (T1, CT, _0000)."
        )
    names = _names(wanted, complete)
    cases = [
        tuple(_only(group[channel], name, source) for channel, name in zip(wanted, names, strict=True))
        for group in complete
    ]
    incomplete = [group for group in candidates if not set(wanted) <= group.keys()]
    missing = [", no ".join(_names(set(wanted) - group.keys(), complete)) for group in incomplete]
    lacking = [
        f"{identifier(_first(group), whole=False)} (no {names})"
        for group, names in zip(incomplete, missing, strict=True)
    ]
    surplus = [
        _place(scan, source)
        for group in groups
        for channel, found in group.items()
        for scan in found
        if not together & group.keys() or (set(wanted) <= group.keys() and channel not in wanted)
    ]
    notes = []
    if lacking:
        notes.append(f"{len(lacking)} case(s) lack a channel and are left out: {_some(lacking)}.")
    if surplus:
        what = f"are none of the channels {', '.join(names)} and are left out"
        notes.append(f"{len(surplus)} scan(s) {what}: {_some(surplus)}.")
    return Together(
        channels=tuple(zip(wanted, names, strict=True)),
        cases=tuple((identifier(scans[0], whole=False), scans) for scans in cases),
        left_out=tuple(scan for group in incomplete for found in group.values() for scan in found),
        notes=tuple(notes),
    )


def _only(scans: Sequence[Found], name: str, source: Path) -> Found:
    if len(scans) > 1:
        first, second = (_place(scan, source) for scan in scans[:2])
        raise DataError(
            f"{source}: two scans would both be {name} of one case: {first} and {second}; move one of them "
            "away."
        )
    return scans[0]


def _order(channel: Words) -> tuple[tuple[int, str], ...]:
    return tuple((CHANNELS.index(word) if word in CHANNELS else len(CHANNELS), word) for word in channel)


def _names(channels: Iterable[Words], groups: Sequence[Group]) -> list[str]:
    return [
        shown(channel, next(group[channel][0] for group in groups if channel in group))
        for channel in sorted(channels, key=_order)
    ]


def _combinations(groups: Sequence[Group]) -> str:
    counts = Counter(" + ".join(_names(group, groups)) for group in groups)
    return ", ".join(f"{names} ({count})" for names, count in counts.most_common(NAMED + 1))


def _first(group: Group) -> Found:
    return next(iter(group.values()))[0]


def _place(file: Found, source: Path) -> str:
    return file.path.relative_to(source).as_posix()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
