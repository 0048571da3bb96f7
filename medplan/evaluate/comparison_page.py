"""One self-contained HTML page that sets several methods side by side."""

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np

from medplan.evaluate.charts import Dots, box_chart, line_chart
from medplan.evaluate.compare import Comparison, Entry, spread_of
from medplan.evaluate.page import Cell, details, document, number, section, spread, table
from medplan.evaluate.sections import dice_axis
from medplan.evaluate.training_log import Curve
from medplan.records import write_text

__all__ = ["write_comparison"]

DEFINITIONS = """
<ul><li>Only cases and classes that all of them have are compared. A case that a method has in several runs
or folds counts once, with the mean of its scores.</li>
<li>Scores of a run are those of its validation cases, which chose its best checkpoint too; those of the last
one (--checkpoint last) are free of that, as are those of test cases.</li>
<li>Means are over cases per class, then over classes. A class that is absent from prediction and reference
has no score; one that is absent from only one of them scores 0.</li>
<li>Intervals are percentiles of 2000 bootstrap resamples of the cases; they do not cover what another
training would give, which the deviation over runs shows.</li>
<li>p is that of Wilcoxon's signed-rank test over cases, two-sided, with Holm's correction for the number of
methods. Cases of different folds were predicted by different models, so p is somewhat too small.</li></ul>
"""


def write_comparison(comparison: Comparison, output: Path, *, curves: Mapping[str, Curve]) -> Path:
    """Write the page; `curves` are the validation scores during training by name, where they are known."""
    names = [entry.name for entry in comparison.entries]
    title = " and ".join(names) if len(names) < 3 else f"{len(names)} methods compared"
    count = f"{len(comparison.cases)} cases"
    rest = [
        f"{left} further cases of {name} are left out."
        for name, left in zip(names, comparison.left_out, strict=True)
        if left
    ]
    header = (
        f'<header><p class="kicker">Comparison</p><h1>{escape(title)}</h1><p class="lead">On {count} that '
        f"all of them were evaluated on. {escape(' '.join(rest))}</p></header>"
    )
    means = {entry.name: _case_means(comparison, entry) for entry in comparison.entries}
    axis = dice_axis([value for cases in means.values() for value in cases.values()])
    charts = [
        _boxes(means, "Dice of each case", axis),
        _difference_chart(comparison),
        line_chart(curves, title="Validation during training"),
    ]
    drawn = f'<div class="panel"><div class="two">{"".join(charts)}</div></div>'
    parts = [
        header,
        section("Scores", _scores(comparison) + _differences(comparison) + drawn),
        section("Dice per class", _classes(comparison), hint="Mean over cases."),
        details(f"Every case ({count})", _cases(comparison)),
        f"<footer><b>How this is computed</b>{DEFINITIONS}</footer>",
    ]
    return write_text(document(title, "".join(parts)), output)


def _scores(comparison: Comparison) -> str:
    unit = comparison.unit
    columns = ["Method", "Runs", "Mean Dice", "95 % CI", "SD of cases", "SD of runs", f"HD95 ({unit})", "NSD",
               "Missed", "False alarms"]  # fmt: skip
    rows = []
    for entry in comparison.entries:
        dice = comparison.interval(entry, "dice")
        failures = [comparison.failures(entry, outcome) for outcome in ("missed", "false alarm")]
        rows.append(
            [
                Cell.text(entry.name), Cell(str(len(entry.runs))), Cell.share(dice.mean), Cell(spread(dice)),
                Cell(number(comparison.case_deviation(entry))), Cell(number(comparison.run_deviation(entry))),
                Cell(number(comparison.interval(entry, "hd95").mean, 2)),
                Cell(number(comparison.interval(entry, "nsd").mean)),
                *(Cell(f"{count:g}", "warn" if count else "") for count in failures),
            ]
        )  # fmt: skip
    return table(columns, rows)


def _differences(comparison: Comparison) -> str:
    rows = []
    for entry, found in zip(comparison.entries[1:], comparison.differences, strict=True):
        values = list(found.cases.values())
        rows.append(
            [
                Cell.text(entry.name), Cell(f"{found.mean.mean:+.3f}"),
                Cell(escape(spread_of(found.mean, sign="+"))),
                Cell(str(sum(v > 0 for v in values))), Cell(str(sum(v < 0 for v in values))),
                Cell(number(found.p, 4)),
            ]
        )  # fmt: skip
    columns = [f"Minus {comparison.entries[0].name}", "Dice", "95 % CI", "Cases better", "Cases worse", "p"]
    return table(columns, rows)


def _difference_chart(comparison: Comparison) -> str:
    values = {
        entry.name: found.cases
        for entry, found in zip(comparison.entries[1:], comparison.differences, strict=True)
    }
    reach = max((abs(v) for cases in values.values() for v in cases.values()), default=0.0) * 1.05 or 0.01
    title = f"Dice of each case minus that of {comparison.entries[0].name}"
    return _boxes(values, title, (-reach, reach))


def _boxes(values: Mapping[str, Mapping[str, float]], title: str, domain: tuple[float, float]) -> str:
    rows = [
        Dots(
            label=name,
            values=tuple(cases.values()),
            titles=tuple(f"{case}: {value:.3f}" for case, value in cases.items()),
        )
        for name, cases in values.items()
    ]
    return box_chart(rows, title=title, domain=domain) if rows else ""


def _classes(comparison: Comparison) -> str:
    means = [_over_cases(comparison, entry) for entry in comparison.entries]
    rows = [
        [Cell.text(name), *(Cell.share(mean[row]) for mean in means)]
        for row, name in enumerate(comparison.classes)
    ]
    return table(["Class", *(entry.name for entry in comparison.entries)], rows)


def _cases(comparison: Comparison) -> str:
    means = [_case_means(comparison, entry) for entry in comparison.entries]
    rows = [
        [Cell.text(case), *(Cell.share(mean.get(case, math.nan)) for mean in means)]
        for case in comparison.cases
    ]
    return table(["Case", *(f"Dice {entry.name}" for entry in comparison.entries)], rows)


def _over_cases(comparison: Comparison, entry: Entry) -> list[float]:
    columns = comparison.table(entry, "dice").T
    return [float(c[np.isfinite(c)].mean()) if np.isfinite(c).any() else math.nan for c in columns]


def _case_means(comparison: Comparison, entry: Entry) -> dict[str, float]:
    rows = comparison.table(entry, "dice")
    return {
        case: float(row[np.isfinite(row)].mean())
        for case, row in zip(comparison.cases, rows, strict=True)
        if np.isfinite(row).any()
    }
