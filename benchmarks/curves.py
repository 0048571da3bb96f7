"""Validation Dice against time, of several runs in one picture.

    python benchmarks/curves.py PICTURE "NAME=RUN[:SECONDS]" ...

PICTURE is an .svg or .png; RUN a fold folder with ``log.jsonl``. Time is that of the training steps, as
logged; SECONDS, where given, is the processor time of the whole run, which is then spread evenly over its
logged time: on a machine that is shared, the clock runs on while the processor works for somebody else.
"""

import argparse
import json
from pathlib import Path

__all__ = ["curve", "draw"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def curve(log: Path, total: float | None = None) -> tuple[list[float], list[float]]:
    """Return seconds and validation scores of a run.

    Args:
        log: a ``log.jsonl``.
        total: seconds of the whole run, if they are known otherwise.
    """
    seconds, step, clock, scores = 0.0, 0, [], []
    for line in map(json.loads, log.read_text().splitlines()):
        if "seconds" in line:
            seconds += line["seconds"] * (line["step"] - step)
            step = line["step"]
        if "validation" in line:
            clock.append(seconds)
            scores.append(float(line["validation"]["score"]))
    scale = 1.0 if total is None or not seconds else total / seconds
    return [scale * each for each in clock], scores


def draw(runs: list[tuple[str, list[float], list[float]]], picture: Path) -> None:
    """Write the picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), dpi=110, layout="constrained")
    axis = figure.subplots()
    for number, (name, seconds, scores) in enumerate(runs):
        colour = COLOURS[number % len(COLOURS)]
        axis.plot(seconds, scores, "o-", color=colour, label=name, markersize=3, linewidth=1.5)
    axis.set_xlabel("time of training steps in s")
    axis.set_ylabel("validation Dice")
    axis.grid(color="0.9")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN[:SECONDS]")
    options = parser.parse_args()
    runs = []
    for text in options.runs:
        name, _, rest = text.partition("=")
        folder, _, seconds = rest.partition(":")
        runs.append((name, *curve(Path(folder) / "log.jsonl", float(seconds) if seconds else None)))
    draw(runs, options.picture)


if __name__ == "__main__":
    main()
