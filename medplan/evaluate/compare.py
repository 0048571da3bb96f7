"""Several methods on the same cases: means, spread, and what each does better than the first."""

import csv
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from medplan.errors import DataError
from medplan.evaluate.summary import CSV_COLUMNS, Interval, Summary, csv_rows, interval_of

__all__ = ["SHOWN", "Comparison", "Difference", "Entry", "compare", "csv_of", "spread_of", "text_of"]

SHOWN = ("dice", "hd95", "nsd")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is compared: a method with its runs (seeds), each with the evaluations of its folds by name."""

    name: str
    runs: Mapping[str, Mapping[str, Summary]]

    @property
    def summaries(self) -> list[Summary]:
        return [summary for folds in self.runs.values() for summary in folds.values()]

    @property
    def case_ids(self) -> set[str]:
        """Cases that every run was evaluated on."""
        each = [{case.id for s in folds.values() for case in s.cases} for folds in self.runs.values()]
        return set.intersection(*each)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An entry minus the first one.

    Attributes:
        cases: per case that both score, the mean over classes of the difference in Dice.
        mean: over classes of the mean over cases, with the bootstrap interval over cases.
        p: of Wilcoxon's signed-rank test over cases, two-sided, after Holm's correction for the number of
            entries; NaN with fewer than two cases.
    """

    cases: Mapping[str, float]
    mean: Interval
    p: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Entries on the cases that all of them have.

    Attributes:
        left_out: per entry the number of cases that another one lacks.
    """

    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    cases: tuple[str, ...]
    left_out: tuple[int, ...]

    @property
    def unit(self) -> str:
        return self.entries[0].summaries[0].unit

    def table(self, entry: Entry, metric: str) -> npt.NDArray[np.float64]:
        """Return (cases, classes): the mean over runs and folds in which an entry has the case."""
        return _mean(np.stack([self._table(list(folds.values()), metric) for folds in entry.runs.values()]))

    def interval(self, entry: Entry, metric: str) -> Interval:
        """Return the mean over classes of the mean over cases, with its bootstrap interval over cases."""
        return interval_of(self.table(entry, metric))

    def run_deviation(self, entry: Entry) -> float:
        """Return the standard deviation of the mean Dice over runs; NaN for a single one."""
        means = [interval_of(self._table(list(f.values()), "dice")).mean for f in entry.runs.values()]
        return float(np.std(means, ddof=1)) if len(means) > 1 else math.nan

    def case_deviation(self, entry: Entry) -> float:
        """Return the standard deviation over cases of the Dice of a case."""
        values = _mean(self.table(entry, "dice").T)
        values = values[np.isfinite(values)]
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    def failures(self, entry: Entry, outcome: str) -> float:
        """Return how many structures were missed, or found where there is none, in a run on average."""
        known = set(self.cases)
        outcomes = [
            score.outcome
            for s in entry.summaries
            for case in s.cases
            if case.id in known
            for score in case.scores
        ]
        return outcomes.count(outcome) / len(entry.runs)  # type: ignore[arg-type]

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """Return what each entry but the first does better than the first."""
        first = self.table(self.entries[0], "dice")
        tables = [self.table(entry, "dice") - first for entry in self.entries[1:]]
        over_classes = [_mean(table.T) for table in tables]
        found = []
        for table, values, p in zip(
            tables, over_classes, _holm(list(map(_wilcoxon, over_classes))), strict=True
        ):
            known = {case: float(v) for case, v in zip(self.cases, values, strict=True) if math.isfinite(v)}
            found.append(Difference(cases=known, mean=interval_of(table), p=p))
        return tuple(found)

    def _table(self, folds: Sequence[Summary], metric: str) -> npt.NDArray[np.float64]:
        row_of = {case: row for row, case in enumerate(self.cases)}
        tables = np.full((len(folds), len(self.cases), len(self.classes)), np.nan)
        for table, summary in zip(tables, folds, strict=True):
            scores = summary.table(metric)[:, [_names(summary, self.classes).index(c) for c in self.classes]]
            for case, values in zip(summary.cases, scores, strict=True):
                if case.id in row_of:
                    table[row_of[case.id]] = values
        return _mean(tables)


def compare(entries: Sequence[Entry]) -> Comparison:
    """Put entries on the cases and classes that all of them have; the first is what others are compared with.

    Raises: DataError if they have no case or no class in common.
    """
    cases = set.intersection(*(entry.case_ids for entry in entries))
    if not cases:
        listed = ", ".join(f"'{entry.name}' ({len(entry.case_ids)} cases)" for entry in entries)
        raise DataError(f"There is no case that all of these were evaluated on: {listed}.")
    summaries = [summary for entry in entries for summary in entry.summaries]
    for names in (
        [summary.class_names for summary in summaries],
        [summary.class_keys for summary in summaries],  # a summary of nnU-Net knows values only
    ):
        if classes := tuple(name for name in names[0] if all(name in each for each in names)):
            break
    else:
        raise DataError(
            f"There is no class that all of these have: {summaries[0].class_names} in "
            f"'{entries[0].name}', {summaries[-1].class_names} in '{entries[-1].name}'."
        )
    return Comparison(
        entries=tuple(entries), classes=classes, cases=tuple(sorted(cases)),
        left_out=tuple(len(entry.case_ids - cases) for entry in entries),
    )  # fmt: skip


def text_of(comparison: Comparison) -> str:
    """Return the comparison as lines of text for a terminal."""
    unit = comparison.unit
    lines = [
        [
            "",
            "runs",
            "Dice",
            "95 % CI",
            "SD cases",
            "SD runs",
            f"HD95 {unit}",
            "NSD",
            "missed",
            "false alarms",
        ]
    ]
    for entry in comparison.entries:
        dice, hd95, nsd = (comparison.interval(entry, metric) for metric in SHOWN)
        lines.append(
            [
                entry.name, str(len(entry.runs)), _number(dice.mean), spread_of(dice),
                _number(comparison.case_deviation(entry)), _number(comparison.run_deviation(entry)),
                _number(hd95.mean, 1), _number(nsd.mean), f"{comparison.failures(entry, 'missed'):g}",
                f"{comparison.failures(entry, 'false alarm'):g}",
            ]
        )  # fmt: skip
    text = [f"{len(comparison.cases)} cases, {len(comparison.classes)} classes"]
    text += [
        f"{number} further cases of '{entry.name}' are left out, which not all have."
        for entry, number in zip(comparison.entries, comparison.left_out, strict=True)
        if number
    ]
    text += _aligned(lines)
    if comparison.differences:
        text.append(f"Dice minus that of '{comparison.entries[0].name}', case by case:")
        lines = [["", "mean", "95 % CI", "better", "worse", "p"]]
        for entry, found in zip(comparison.entries[1:], comparison.differences, strict=True):
            values = list(found.cases.values())
            better, worse = sum(v > 0 for v in values), sum(v < 0 for v in values)
            lines.append(
                [
                    entry.name, f"{found.mean.mean:+.3f}", spread_of(found.mean, sign="+"), str(better),
                    str(worse), _number(found.p, 4),
                ]
            )  # fmt: skip
        text += _aligned(lines)
    return "\n".join(text)


def csv_of(comparison: Comparison) -> str:
    """Return every score as CSV: a row per entry, run, fold, case and class, also of cases left out above."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "run", "fold", *CSV_COLUMNS])
    for entry in comparison.entries:
        for run, folds in entry.runs.items():
            for fold, summary in folds.items():
                writer.writerows([entry.name, run, fold, *row] for row in csv_rows(summary))
    return text.getvalue()


def _names(summary: Summary, classes: Sequence[str]) -> tuple[str, ...]:
    """Return a summary's classes as they are called in the comparison: by name, or by value."""
    return summary.class_names if set(classes) <= set(summary.class_names) else summary.class_keys


def _wilcoxon(values: npt.NDArray[np.float64]) -> float:
    """Source: Wilcoxon 1945; differences of 0 are left out, and all of them being 0 is no evidence."""
    from scipy.stats import wilcoxon

    known = values[np.isfinite(values)]
    if len(known) < 2:
        return math.nan
    return float(wilcoxon(known).pvalue) if (known != 0).any() else 1.0


def _holm(values: Sequence[float]) -> list[float]:
    """Source: Holm 1979: the smallest p times the number of tests, the next times one fewer, and so on."""
    known = sorted((p, place) for place, p in enumerate(values) if math.isfinite(p))
    corrected = [math.nan] * len(values)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        corrected[place] = least
    return corrected


def _mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the mean over the first axis of what is defined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing is defined: NaN is meant
        found: npt.NDArray[np.float64] = np.nanmean(values, axis=0)
    return found


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            [f"  {line[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def spread_of(interval: Interval, *, sign: str = "") -> str:
    """Return the bounds of an interval in words, each with a sign if one is wanted."""
    return f"{interval.low:{sign}.3f} to {interval.high:{sign}.3f}" if math.isfinite(interval.low) else "-"
