"""One self-contained HTML page about a run: scores, curves, cases, plan and environment. It loads nothing."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from medplan.errors import DataError, UsageError
from medplan.evaluate import sections
from medplan.evaluate.charts import line_chart
from medplan.evaluate.heatmaps import heatmap_sections
from medplan.evaluate.overlays import CLASS_COLOURS, PREDICTION_COLOUR, REFERENCE_COLOUR, overlay
from medplan.evaluate.page import Cell, chips, details, document, number, picture, section, table
from medplan.evaluate.summary import CaseScores, Summary
from medplan.evaluate.training_log import Curve, read_log
from medplan.records import load_json, write_text

__all__ = ["Evaluation", "write_report"]

logger = logging.getLogger(__name__)

NUM_WORST, NUM_MEDIAN, NUM_BEST = 4, 2, 2
"""How many cases are shown with overlays."""

OTHERS = {
    "seconds": "Seconds per step",
    "loader_wait": "Share of the time spent waiting for data",
    "peak_bytes": "Peak memory in bytes",
}
FIGURES_HINT = "What the method gave out for each case besides the segmentation (medplan predict --extras)."


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation to show.

    Attributes:
        name: of the cases and the checkpoint ("test, best checkpoint").
        summary: the scores; its cases name the label files for the overlays.
        images: the image files (one per channel) by case id; cases without get no overlay.
        group: evaluations of one group differ in fold or seed only, and get a mean and an interval over them.
    """

    name: str
    summary: Summary
    images: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    group: str = ""


def write_report(run_folder: Path, output: Path, *, evaluations: Sequence[Evaluation]) -> Path:
    """Write the page.

    Args:
        run_folder: with any of ``log.jsonl``, ``plan.json`` and ``run.json``; what is missing is left out.
        output: the HTML file.
        evaluations: the first one is the one that cards and overlays are about; may be empty while training.

    Raises: UsageError if there is nothing to report.
    """
    plan, run = _read(run_folder / "plan.json"), _read(run_folder / "run.json")
    log = run_folder / "log.jsonl"
    if not (evaluations or plan or log.is_file()):
        raise UsageError(
            f"{run_folder}: there is nothing to report, neither a log, nor a plan, nor an evaluation."
        )
    name, method = str(plan.get("name", "")), str(plan.get("method", ""))
    heading = f"{method} on {name}" if name and method else run_folder.name
    parts = [_header(heading, run_folder, plan, evaluations)]
    if evaluations:
        parts.append(_scores(evaluations))
        parts.append(_cases(evaluations[0]))
        if figures := sections.figures(evaluations[0].summary):
            parts.append(section("Figures besides", figures, hint=FIGURES_HINT))
    parts.append(_training(log))
    parts.append(heatmap_sections(run_folder))
    parts.append(_plan(plan))
    parts.append(section("Environment", _facts(run)))
    if evaluations:
        parts.append(
            f"<footer><b>How scores are defined</b>{sections.conventions(evaluations[0].summary)}</footer>"
        )
    return write_text(document(heading, "".join(parts)), output)


def _header(heading: str, folder: Path, plan: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> str:
    facts: dict[str, object] = {}
    if plan:
        facts = {"Dataset": plan.get("name", ""), "Method": plan.get("method", "")}
    facts["Run"] = folder.parent.name if folder.name.startswith("fold_") else folder.name
    if evaluations:
        facts["Shown"] = evaluations[0].name
    facts["Written"] = datetime.now().strftime("%d %B %Y, %H:%M")
    lead = f'<p class="lead">{sections.lead(evaluations[0].summary)}</p>' if evaluations else ""
    cards = sections.cards(evaluations[0].summary) if evaluations else ""
    kicker = '<p class="kicker">Segmentation report</p>'
    return f"<header>{kicker}<h1>{escape(heading)}</h1>{lead}{chips(facts)}</header>{cards}"


def _scores(evaluations: Sequence[Evaluation]) -> str:
    groups: dict[str, list[Summary]] = {}
    for evaluation in evaluations:
        if evaluation.group:
            groups.setdefault(evaluation.group, []).append(evaluation.summary)
    both = sections.comparison([(evaluation.name, evaluation.summary) for evaluation in evaluations])
    first, *others = evaluations
    parts = [section("All evaluations", both + sections.runs(list(groups.items())))]
    hint = (
        "Mean and standard deviation over the cases that contain the class. Rest the mouse on a dot to see "
        "which case it is."
    )
    parts.append(section("Scores per class", _per_class(first), hint=hint))
    parts += [details(f"Scores per class: {other.name}", _per_class(other)) for other in others]
    return "".join(parts)


def _per_class(evaluation: Evaluation) -> str:
    return sections.classes(evaluation.summary) + sections.distributions(evaluation.summary)


def _cases(evaluation: Evaluation) -> str:
    summary = evaluation.summary
    ranked = summary.ranked()
    middle = max((len(ranked) - NUM_MEDIAN) // 2, 0)
    picks = [("worst", case) for case in ranked[:NUM_WORST]]
    picks += [("median", case) for case in ranked[middle : middle + NUM_MEDIAN]]
    picks += [("best", case) for case in reversed(ranked[max(len(ranked) - NUM_BEST, 0) :])]
    if len(ranked) <= NUM_WORST:  # all of them are shown, and none stands out
        picks = [(f"{place} of {len(ranked)}", case) for place, case in enumerate(ranked, 1)]
    shown: dict[str, str] = {}
    for kind, case in picks:
        shown.setdefault(case.id, _case(case, kind, evaluation))
    legend = (
        f'<div class="legend"><span><i class="swatch" style="color:{REFERENCE_COLOUR}"></i>reference</span>'
        f'<span><i class="swatch" style="color:{PREDICTION_COLOUR}"></i>prediction (outlines)</span></div>'
    )
    if len(summary.class_names) > 1:
        colours = [CLASS_COLOURS[row % len(CLASS_COLOURS)] for row in range(len(summary.class_names))]
        items = (
            f'<span><i class="swatch" style="color:{colour}"></i>{escape(name)}</span>'
            for colour, name in zip(colours[:24], summary.class_names, strict=False)
        )
        legend += f'<div class="legend">Second row, predicted: {"".join(items)}</div>'
    hint = ""
    if summary.unit == "mm":
        hint = (
            "Each plane goes through the slice with most foreground of the reference. The patient's right is "
            "on the left (R), as radiologists read images."
        )
    kind = "cases flat" if summary.unit == "px" else "cases"
    everyone = details(f"Every case ({len(summary.cases)})", sections.all_cases(summary))
    return section(
        "Cases", f'{legend}<div class="{kind}">{"".join(shown.values())}</div>{everyone}', hint=hint
    )


def _case(case: CaseScores, kind: str, evaluation: Evaluation) -> str:
    summary = evaluation.summary
    worst = [
        f"{escape(name)} {score.outcome if score.outcome != 'both' else number(score.dice, 2)}"
        for score, name in sorted(
            ((s, n) for s, n in zip(case.scores, summary.class_names, strict=True) if s.outcome != "absent"),
            key=lambda pair: pair[0].dice,
        )[:4]
    ]
    scores = f"Dice <b>{number(case.mean('dice'))}</b>"
    if summary.surface:
        scores += f" &nbsp; HD95 <b>{number(case.mean('hd95'), 1)} {summary.unit}</b>"
    if len(summary.class_names) > 1:
        scores += f" &nbsp; {', '.join(worst)}"
    top = (
        f'<div class="top"><span class="rank">{kind}</span><b>{escape(case.id)}</b>'
        f'<span class="scores">{scores}</span></div>'
    )
    return f'<article class="case">{top}{_overlay(case, evaluation)}</article>'


def _overlay(case: CaseScores, evaluation: Evaluation) -> str:
    images = evaluation.images.get(case.id, ())
    if not images:
        return "<p>No image was given for this case.</p>"
    try:
        content = overlay(images, case.prediction, case.reference, keys=evaluation.summary.class_keys)
    except DataError as error:
        logger.warning("No overlay of '%s': %s", case.id, error)
        return f"<p>No overlay: {escape(str(error))}</p>"
    return picture(content, kind="jpeg", alternative=f"{case.id}: outlines of reference and prediction")


def _training(log: Path) -> str:
    if not log.is_file():
        return ""
    training = read_log(log)

    def chart(title: str, curves: Mapping[str, Curve]) -> str:
        return line_chart(curves, title=title, phases=training.phases)

    drawn = chart("Loss", training.of_kind("losses")) + chart("Validation", training.of_kind("validation"))
    more = chart("Learning rate", training.of_kind("lr"))
    # Seconds and bytes have nothing to share an axis for.
    more += "".join(chart(OTHERS.get(key, key), {key: one}) for key, one in training.of_kind("other").items())
    more = f'<div class="panel"><div class="two">{more}</div></div>' if more else ""
    body = f'<div class="panel"><div class="two">{drawn}</div></div>' if drawn else ""
    hint = "over optimiser steps; thin lines are the logged values, thick ones their running mean."
    hint = f"Of {log.parent.name}, {hint}"
    return section("Training", body + details("Learning rate and other logged numbers", more), hint=hint)


def _plan(plan: Mapping[str, Any]) -> str:
    if not plan:
        return ""
    reasons = {str(key): str(value) for key, value in (plan.get("reasons") or {}).items()}
    values = dict(_flatten({key: value for key, value in plan.items() if key != "reasons"}))
    values |= {key: "" for key in reasons if key not in values}
    rows = [
        [
            Cell.text(key),
            Cell.text(value, classes="text value"),
            Cell.text(reasons.get(key, ""), classes="wrap text"),
        ]
        for key, value in values.items()
    ]
    decided = [row for row in rows if row[2].html]
    silent = [row for row in rows if not row[2].html]
    columns = ["Decision", "Value", "Reason"]
    return section(
        "Plan", table(columns, decided) + details("All values of the plan", table(columns, silent)),
        hint="What was decided for this dataset, and why.",
    )  # fmt: skip


def _flatten(value: Any, key: str = "") -> list[tuple[str, str]]:
    """Turn nested values into (dotted key, short text) pairs; of folds only the number of cases per role."""
    if isinstance(value, Mapping) and value and key.rsplit(".", 1)[-1] != "domains":
        return [pair for name, item in value.items() for pair in _flatten(item, f"{key}.{name}".lstrip("."))]
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        if key.rsplit(".", 1)[-1] == "folds":
            texts = (", ".join(f"{len(ids)} {role}" for role, ids in fold.items()) for fold in value)
            return [(f"{key}.{index}", text) for index, text in enumerate(texts)]
        inner = [f"{key}.{item.get('name', index)}" for index, item in enumerate(value)]
        return [pair for name, item in zip(inner, value, strict=True) for pair in _flatten(item, name)]
    text = value if isinstance(value, str) else json.dumps(value)
    return [(key, text if len(text) <= 400 else f"{text[:400]} ...")]


def _facts(run: Mapping[str, Any]) -> str:
    rows = [
        [Cell.text(key), Cell.text(value, classes="text value")] for key, value in _flatten(dict(run)) if key
    ]
    return table(["Fact", "Value"], rows)


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    data = load_json(path, error=DataError)
    return data if isinstance(data, dict) else {}
