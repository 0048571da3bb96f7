"""The sections of the report that are about scores."""

import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape

import numpy as np

from medplan.evaluate.charts import Dots, box_chart, scatter_chart
from medplan.evaluate.page import Cell, card, number, spread, table
from medplan.evaluate.summary import CaseScores, Interval, Summary, across

__all__ = [
    "all_cases",
    "cards",
    "classes",
    "comparison",
    "conventions",
    "counted",
    "dice_axis",
    "distributions",
    "figures",
    "lead",
    "runs",
]

MAX_CLASS_COLUMNS = 8


def lead(summary: Summary) -> str:
    """Return the result in one or two sentences of HTML."""
    overall = summary.interval("dice")
    bounds = f" (95&nbsp;% CI {spread(overall)})" if spread(overall) else ""
    count = counted(len(summary.cases), "case")
    text = f"Mean foreground Dice <b>{number(overall.mean)}</b>{bounds} over {count}"
    means = summary.class_mean("dice")
    if len(means) > 1 and np.isfinite(means).any():
        worst, best = int(np.nanargmin(means)), int(np.nanargmax(means))
        text += (
            f"; from {number(means[worst], 2)} for {escape(summary.class_names[worst])} to "
            f"{number(means[best], 2)} for {escape(summary.class_names[best])}"
        )
    missed, alarms = sum(summary.outcomes("missed")), sum(summary.outcomes("false alarm"))
    failures = [f"{counted(missed, 'structure')} missed altogether"] if missed else []
    failures += [f"{counted(alarms, 'structure')} predicted where there is none"] if alarms else []
    return f"{text}. {', '.join(failures)}." if failures else f"{text}."


def cards(summary: Summary) -> str:
    """Return the figures that matter most, in large type."""
    dice, unit = summary.interval("dice"), f"<small>{summary.unit}</small>"
    items = [
        card(
            "Mean Dice",
            number(dice.mean),
            _interval_note(spread(dice), "mean over cases, then classes"),
            first=True,
        ),
        card("Pooled Dice", number(_nanmean(summary.pooled_dice())), "voxels of all cases together"),
    ]
    if summary.surface:
        hd95, nsd = summary.interval("hd95"), summary.interval("nsd")
        items += [
            card("HD95", number(hd95.mean, 1) + unit, _interval_note(spread(hd95, 1), "95th percentile")),
            card(
                f"NSD at {summary.tolerance:g} {summary.unit}", number(nsd.mean),
                _interval_note(spread(nsd), "surface within tolerance"),
            ),
        ]  # fmt: skip
    missed, alarms = sum(summary.outcomes("missed")), sum(summary.outcomes("false alarm"))
    total = sum(score.n_ref > 0 for case in summary.cases for score in case.scores)
    items.append(
        card(
            "Missed / false alarms",
            f"{missed}<small>/ {alarms}</small>",
            f"of {total} structures in the references",
        )
    )
    return f'<div class="cards">{"".join(items)}</div>'


def comparison(named: Sequence[tuple[str, Summary]]) -> str:
    """Return one line per evaluation, such as the last and the best checkpoint; empty for a single one."""
    if len(named) < 2:
        return ""
    rows = []
    for name, summary in named:
        dice = summary.interval("dice")
        rows.append(
            [
                Cell.text(name), Cell(str(len(summary.cases))), Cell.share(dice.mean),
                Cell(spread(dice)), Cell.share(_nanmean(summary.pooled_dice())),
                Cell(number(summary.mean("hd95"), 2)), Cell(number(summary.mean("assd"), 2)),
                Cell(number(summary.mean("nsd"))), Cell.failures(sum(summary.outcomes("missed"))),
                Cell.failures(sum(summary.outcomes("false alarm"))),
            ]
        )  # fmt: skip
    unit = named[0][1].unit
    columns = [
        "Evaluation", "Cases", "Mean Dice", "95 % CI", "Pooled Dice", f"HD95 ({unit})", f"ASSD ({unit})",
        "NSD", "Missed", "False alarms",
    ]  # fmt: skip
    return table(columns, rows)


def runs(groups: Sequence[tuple[str, Sequence[Summary]]]) -> str:
    """Return mean and interval over folds or seeds, for groups that have at least two evaluations."""
    rows = []
    for name, summaries in groups:
        if len(summaries) < 2:
            continue
        row = [Cell.text(name), Cell(str(len(summaries)))]
        for metric, digits, most in (("dice", 3, 1.0), ("hd95", 2, math.inf), ("nsd", 3, 1.0)):
            found = _within(across([summary.mean(metric) for summary in summaries]), most)
            row += [Cell(number(found.mean, digits)), Cell(spread(found, digits))]
        pooled = _within(across([_nanmean(summary.pooled_dice()) for summary in summaries]), 1.0)
        rows.append([*row, Cell(number(pooled.mean)), Cell(spread(pooled))])
    columns = ["Over folds and seeds", "Runs", "Dice", "95 % CI", "HD95", "95 % CI", "NSD", "95 % CI",
               "Pooled", "95 % CI"]  # fmt: skip
    return table(columns, rows)


def _within(interval: Interval, most: float) -> Interval:
    """Cut an interval of two or three values to what a score can be."""
    return replace(interval, low=max(interval.low, 0.0), high=min(interval.high, most))


def classes(summary: Summary) -> str:
    """Return the scores per class."""
    names = ("dice", "iou", "hd95", "assd", "nsd")
    means = {name: summary.class_mean(name) for name in names}
    spreads = {name: _deviations(summary.table(name)) for name in names}
    pooled, missed, alarms = (
        summary.pooled_dice(),
        summary.outcomes("missed"),
        summary.outcomes("false alarm"),
    )
    false_ml, in_ml = summary.false_positive_ml(), summary.unit == "mm"
    in_ml = in_ml and any(math.isfinite(volume) for volume in false_ml)
    columns = ["Class", "Cases", "Dice", "Pooled", "IoU"]
    columns += [f"HD95 ({summary.unit})", f"ASSD ({summary.unit})", "NSD"] if summary.surface else []
    columns += ["Missed", "False alarms"] + (["False volume (ml)"] if in_ml else [])

    def plus_minus(name: str, row: int, digits: int = 3) -> str:
        deviation = spreads[name][row]
        tail = f" <small>&plusmn;&nbsp;{deviation:.{digits}f}</small>" if math.isfinite(deviation) else ""
        return number(means[name][row], digits) + tail

    rows = []
    for row, name in enumerate(summary.class_names):
        cells = [
            Cell.text(name),
            Cell(str(sum(case.scores[row].n_ref > 0 for case in summary.cases))),
            Cell.share(means["dice"][row], html=plus_minus("dice", row)),
            Cell(number(float(pooled[row]))),
            Cell(number(float(means["iou"][row]))),
        ]
        if summary.surface:
            cells += [Cell(plus_minus("hd95", row, 2)), Cell(plus_minus("assd", row, 2))]
            cells += [Cell(number(float(means["nsd"][row])))]
        cells += [Cell.failures(missed[row]), Cell.failures(alarms[row])]
        cells += [Cell(number(false_ml[row], 2))] if in_ml else []
        rows.append(cells)
    return table(columns, rows)


def distributions(summary: Summary) -> str:
    """Return box plots per class and, for volumes, predicted against reference volume."""
    charts = [_boxes(summary, "dice", "Dice per class", dice_axis(summary.table("dice").ravel().tolist()))]
    if summary.surface:
        charts.append(_boxes(summary, "hd95", "HD95 per class", None))
    if summary.unit == "mm":
        charts.append(_boxes(summary, "nsd", f"NSD at {summary.tolerance:g} mm per class", (0.0, 1.0)))
        groups = {
            name: [
                (score.volume_ref_ml, score.volume_pred_ml, _volume_tip(case, name, row))
                for case in summary.cases
                for score in [case.scores[row]]
                if score.outcome == "both"
            ]
            for row, name in enumerate(summary.class_names)
        }
        charts.append(scatter_chart(groups, title="Volume: predicted against reference", unit="ml"))
    drawn = "".join(charts)
    return f'<div class="panel"><div class="two">{drawn}</div></div>' if drawn else ""


def dice_axis(values: Sequence[float]) -> tuple[float, float]:
    """Return from where to where an axis goes that shows the values: from 0, unless all are high."""
    lowest = min((value for value in values if math.isfinite(value)), default=0.0)
    return (0.0 if lowest < 0.4 else math.floor(lowest * 10) / 10 - 0.1, 1.0)


def all_cases(summary: Summary) -> str:
    """Return every case, worst first; those without any structure at the end."""
    ranked = summary.ranked()
    order = [*ranked, *(case for case in summary.cases if case not in ranked)]
    few = len(summary.class_names) <= MAX_CLASS_COLUMNS
    columns = ["Case", "Mean Dice"] + (
        [f"Dice {name}" for name in summary.class_names] if few else ["Lowest class"]
    )
    columns += [f"HD95 ({summary.unit})", "NSD"] if summary.surface else []
    rows = []
    for case in order:
        cells = [Cell.text(case.id), Cell.share(case.mean("dice"))]
        if few:
            cells += [_class_cell(case, row) for row in range(len(summary.class_names))]
        else:
            known = [(s.dice, name) for s, name in zip(case.scores, summary.class_names, strict=True)
                     if math.isfinite(s.dice)]  # fmt: skip
            cells.append(Cell.text(f"{min(known)[1]} {min(known)[0]:.3f}" if known else "none"))
        if summary.surface:
            cells += [Cell(number(case.mean("hd95"), 2)), Cell(number(case.mean("nsd")))]
        rows.append(cells)
    missing = ""
    if summary.missing:
        missing = f'<p class="hint">Without a prediction: {escape(", ".join(summary.missing))}.</p>'
    return table(columns, rows) + missing


def figures(summary: Summary) -> str:
    """Return what the method said of the cases besides the segmentation; empty if it said nothing."""
    means = summary.figures()
    if not means:
        return ""
    rows = [
        [Cell.text("mean"), *(Cell(f"{found.mean:.4g}") for found in means.values())],
        [Cell.text("95 % CI"), *(Cell(spread(found)) for found in means.values())],
    ]
    for case in summary.cases:
        values = (case.figures.get(name) for name in means)
        rows.append([Cell.text(case.id), *(Cell("" if one is None else f"{one:.4g}") for one in values)])
    return table(["Case", *(name.replace("_", " ") for name in means)], rows)


def conventions(summary: Summary) -> str:
    """Return how the scores are defined."""
    unit = "pixels" if summary.unit == "px" else "mm"
    return (
        "<ul><li>Dice and IoU count voxels on the grid of the reference; voxels without annotation are left "
        "out.</li><li>A class that is absent from prediction and reference has no score and is left out of "
        "the means; one that is absent from only one of them scores 0 in Dice, IoU and NSD, has no distance, "
        "and is counted as missed or as a false alarm.</li><li>The mean is over cases per class, then over "
        "classes; pooled Dice adds up the voxels of all cases first. Intervals over cases are percentiles of "
        "2000 bootstrap resamples; those over folds and seeds are Student's.</li>"
        f"<li>Surface distances are exact, in {unit}, between the centres of voxels that share a face with a "
        "voxel outside the structure. HD95 is the larger of the two directed 95th percentiles, ASSD the mean "
        f"over both surfaces, NSD the share of both surfaces within {summary.tolerance:g} {unit}.</li></ul>"
    )


def _boxes(summary: Summary, metric: str, title: str, domain: tuple[float, float] | None) -> str:
    columns = summary.table(metric).T
    rows = [
        Dots(
            label=name,
            values=tuple(float(value) for value in column),
            titles=tuple(f"{case.id}: {v:.3f}" for case, v in zip(summary.cases, column, strict=True)),
        )
        for name, column in zip(summary.class_names, columns, strict=True)
    ]
    return box_chart(rows, title=title, unit="" if domain else summary.unit, domain=domain)


def _class_cell(case: CaseScores, row: int) -> Cell:
    score = case.scores[row]
    if score.outcome in ("missed", "false alarm"):
        return Cell(score.outcome, "warn")
    return Cell.share(score.dice)


def _volume_tip(case: CaseScores, name: str, row: int) -> str:
    score = case.scores[row]
    return (
        f"{case.id}, {name}: {score.volume_pred_ml:.4g} ml predicted, {score.volume_ref_ml:.4g} ml reference"
    )


def _deviations(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[float]:
    columns = [column[np.isfinite(column)] for column in values.T]
    return [float(column.std(ddof=1)) if len(column) > 1 else math.nan for column in columns]


def _interval_note(bounds: str, note: str) -> str:
    return f"95&nbsp;% CI {bounds}<br>{note}" if bounds else note


def _nanmean(values: Sequence[float] | np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    known = [float(value) for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, which takes an s unless it is one."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
