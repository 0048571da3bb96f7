"""The curves of a training run as a PNG for its folder."""

import os
from pathlib import Path
from textwrap import shorten

from medplan.evaluate.training_log import Kind, read_log

__all__ = ["progress"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5FC0", "#8C564B")
MOST_NAMED = 12
"""Of more curves in a panel, as of a dataset with a hundred classes, the first so many are named."""
TITLES: dict[Kind, str] = {"losses": "loss", "validation": "validation", "lr": "learning rate"}


def progress(log: Path, png: Path) -> Path:
    """Draw loss, validation scores and learning rate of a ``log.jsonl`` over the training step.

    Raises: DataError if there is no log.
    """
    from matplotlib.figure import Figure

    training = read_log(log)
    panels = {kind: curves for kind in TITLES if (curves := training.of_kind(kind))} or {"losses": {}}
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
        axis.grid(color="0.9")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        if curves:
            axis.legend(frameon=False, fontsize=8, ncols=min(len(curves), 4), loc="best")
    axes[-1].set_xlabel("step")
    png.parent.mkdir(parents=True, exist_ok=True)
    temporary = png.with_name(f".{png.name}.{os.getpid()}.tmp")
    figure.savefig(temporary, format="png")
    temporary.replace(png)
    return png
