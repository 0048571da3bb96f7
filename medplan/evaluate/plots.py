"""Pictures for folders: the curves of a training run and box plots of an evaluation, as PNG."""

import os
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from medplan.evaluate.summary import Summary
from medplan.evaluate.training_log import read_log

__all__ = ["box_plots", "progress"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5FC0", "#8C564B")
MOST_NAMED = 12
"""Of more curves in a panel, as of a dataset with a hundred classes, the first so many are named."""
TITLES = {"loss": "loss", "validation": "validation", "rate": "learning rate"}


def progress(log: Path, png: Path) -> Path:
    """Draw loss, validation scores and learning rate of a ``log.jsonl`` over the training step.

    Raises: DataError if there is no log.
    """
    from matplotlib.figure import Figure

    training = read_log(log)
    panels = {kind: training.of_kind(kind) for kind in TITLES}  # type: ignore[arg-type]
    panels = {kind: curves for kind, curves in panels.items() if curves} or {"loss": {}}
    figure = Figure(figsize=(9, 2.9 * len(panels)), dpi=120, layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (kind, curves) in zip(axes, panels.items(), strict=True):
        for number, (name, curve) in enumerate(curves.items()):
            colour = COLOURS[number % len(COLOURS)]
            marker = "o" if len(curve.values) <= 30 else None
            axis.plot(
                curve.steps,
                curve.values,
                color=colour,
                label=shorten(name, 24, placeholder="...") if number < MOST_NAMED else None,
                linewidth=1.4,
                marker=marker,
                markersize=3,
            )
        for _, start in training.phases[1:]:
            axis.axvline(start, color="0.6", linestyle=":", linewidth=1)
        axis.set_ylabel(TITLES[kind])
        _tidy(axis)
        if curves:
            axis.legend(frameon=False, fontsize=8, ncols=min(len(curves), 4), loc="best")
    axes[-1].set_xlabel("step")
    return _save(figure, png)


def box_plots(summary: Summary, png: Path, *, metric: str = "dice") -> Path:
    """Draw one horizontal box per class with a dot per case."""
    from matplotlib.figure import Figure

    table = summary.table(metric)
    values = [column[np.isfinite(column)] for column in table.T]
    figure = Figure(figsize=(8, 1.2 + 0.38 * len(values)), dpi=120, layout="constrained")
    axis = figure.subplots()
    places = list(range(len(values), 0, -1))
    axis.boxplot(
        values, positions=places, orientation="horizontal", widths=0.55, showfliers=False, patch_artist=True,
        boxprops={"facecolor": "#d6e7f2", "edgecolor": "#0072B2"}, medianprops={"color": "black",
        "linewidth": 2}, whiskerprops={"color": "#0072B2"}, capprops={"color": "#0072B2"},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for place, column in zip(places, values, strict=True):
        axis.plot(
            column,
            place + rng.uniform(-0.15, 0.15, len(column)),
            "o",
            color="#0072B2",
            alpha=0.55,
            markersize=3.5,
        )
    axis.set_yticks(places, summary.class_names)
    axis.set_xlabel(
        {"dice": "Dice", "iou": "IoU", "nsd": "NSD"}.get(metric, f"{metric.upper()} ({summary.unit})")
    )
    if metric in ("dice", "iou", "nsd"):
        axis.set_xlim(0, 1.01)
    _tidy(axis)
    return _save(figure, png)


def _tidy(axis: Any) -> None:
    axis.grid(color="0.9")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, png: Path) -> Path:
    png.parent.mkdir(parents=True, exist_ok=True)
    temporary = png.with_name(f".{png.name}.{os.getpid()}.tmp")
    figure.savefig(temporary, format="png")
    temporary.replace(png)
    return png
