"""How much a promptable model depends on its prompt: the reference's box, moved boxes, a found box, none.

    python benchmarks/prompts.py --model RUN [RUN ...] -d Kvasir ClinicDB [--sizes 128 384 896] [--record]

For every labelled training case of each dataset (or `--cases` of them, evenly spread) each prompt is tried.
Of a dataset that a model learnt from, only the validation cases of its fold are taken.
`oracle` is the tight box of the reference, which no user has; `oracle 5 px` moves each of its sides in or out
by up to 5 pixels of the picture; `auto` has a first look find the box; `none` prompts with the whole picture.
`box, filled` and `box, ellipse` are what the reference's box is worth by itself: all of it is predicted, or
the ellipse in it, without a model. A method that takes no prompts gives one row. ``--grid`` answers on a
square grid of that size instead of each picture's own; ``--sizes`` on others besides, for at most
`--size-cases` of the cases, evenly spread. On such grids distances are in percent of the diagonal.

Dice and HD95 are means over cases; HD95 leaves cases out where either mask is empty, which `empty` counts.
Seconds are of the processor. ``--record`` writes ``results/prompts.json``.
"""

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from measurement import write_record

from medplan.data.dataset import open_dataset
from medplan.data.images import read_image, read_label
from medplan.data.labels import LabelSpace
from medplan.data.rawcase import RawCase
from medplan.evaluate.metrics import score_case
from medplan.predict.model import Model, Options
from medplan.workspace import Workspace

JITTERS = (5, 10, 20)
FILLED, ELLIPSE = "box, filled", "box, ellipse"
Boxes = dict[str, npt.NDArray[np.float64]] | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, nargs="+", help="run folders or exported zips")
    parser.add_argument("-d", "--dataset", required=True, nargs="+", help="raw datasets with labels")
    parser.add_argument("--checkpoint", choices=["best", "last"], default="best")
    parser.add_argument("--cases", type=int, help="only so many of them")
    parser.add_argument("--grid", type=int, help="answer on a grid of this size")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[], help="also answer on grids of these sizes"
    )
    parser.add_argument("--size-cases", type=int, default=10, help="so many of them at other sizes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--record", action="store_true", help="write results/prompts.json")
    arguments = parser.parse_args()
    recorded: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for path in arguments.model:
        model = Model.load(path, checkpoint=arguments.checkpoint, device=arguments.device)
        for name in arguments.dataset:
            cases = chosen(model, Workspace.open(arguments.workspace).raw_folder(name))
            if arguments.cases is not None:
                cases = spread(cases, arguments.cases)
            few = {case.id for case in spread(cases, arguments.size_cases)}
            sizes = {case.id: arguments.sizes if case.id in few else [] for case in cases}
            figures = measure(model, cases, sizes, grid=arguments.grid)
            print(f"\n{model.plan.method} on {len(cases)} cases of {name}")
            print(f"{'prompt':<18} {'Dice':>7} {'HD95':>8} {'empty':>6} {'s/case':>7}")
            for prompt, found in figures.items():
                dice, hd95, empty, seconds = (found[key] for key in ("dice", "hd95", "empty", "seconds"))
                print(f"{prompt:<18} {dice:7.4f} {hd95:8.2f} {empty:6.0f} {seconds:7.2f}", flush=True)
            recorded.setdefault(name, {})[model.plan.method] = figures
    if arguments.record:
        write_record("prompts", recorded, nnunet_python=None)


def chosen(model: Model, folder: Path) -> list[RawCase]:
    """Return the labelled training cases of a raw dataset, without those that the model learnt from."""
    dataset = open_dataset(folder)
    cases = [case for case in dataset.cases if case.label is not None]
    learnt = [own for own in model.plan.datasets if own.name == dataset.name]
    if not learnt:
        return cases
    kept = {case for number in model.folds for case in learnt[0].folds[number]["validation"]}
    return [case for case in cases if case.id in kept]


def spread(cases: Sequence[RawCase], number: int) -> list[RawCase]:
    """Return so many of the cases, evenly spread, or all where there are no more."""
    chosen = np.linspace(0, len(cases) - 1, min(number, len(cases))).round().astype(int)
    return [cases[index] for index in chosen]


def measure(
    model: Model, cases: Sequence[RawCase], sizes: Mapping[str, Sequence[int]], *, grid: int | None = None
) -> dict[str, dict[str, float]]:
    """Return Dice, HD95, number of cases without a distance, and seconds per case, by prompt.

    Args:
        sizes: of square grids to answer on too, by case.
        grid: size of the square grid to answer on; None for each picture's own.
    """
    labels = model.dataset.labels
    collected: dict[str, list[tuple[float, float, float]]] = {}
    for case in cases:
        assert case.label is not None
        image = read_image(case.images, channels=len(model.dataset.channels))
        reference, geometry = read_label(case.label)
        for name, boxes, options in prompts(model, reference, labels, case.id, sizes[case.id]):
            if options.output_size is None and grid is not None:
                options = replace(options, output_size=(grid, grid))
            start = time.process_time()
            if name in (FILLED, ELLIPSE):
                found = filled(boxes or {}, labels, reference, ellipse=name == ELLIPSE)
            else:
                prepared = model.prepare(image, name=case.id, boxes=boxes, options=options)
                found = model.predict_prepared(prepared, options=options)
            seconds = time.process_time() - start
            truth, scale = reference, 1.0
            if options.output_size is not None:
                found = nearest(found, options.output_size)  # boxes are filled on the picture's own grid
                truth = nearest(reference, options.output_size)
                scale = 100 / math.hypot(*options.output_size)
            scores = score_case(found, truth, labels=labels, spacing_mm=geometry.spacing_mm)
            dice = [score.dice for score in scores if not math.isnan(score.dice)]
            if dice:
                hd95 = scale * mean([score.hd95 for score in scores])
                collected.setdefault(name, []).append((mean(dice), hd95, seconds))
    figures = {}
    for name, rows in collected.items():
        dice, hd95, seconds = (list(column) for column in zip(*rows, strict=True))
        figures[name] = {
            "dice": mean(dice),
            "hd95": mean(hd95),
            "empty": float(sum(map(math.isnan, hd95))),
            "seconds": mean(seconds),
            "cases": float(len(rows)),
        }
    return figures


def prompts(
    model: Model, reference: npt.NDArray[np.integer], labels: LabelSpace, case: str, sizes: Sequence[int]
) -> Iterator[tuple[str, Boxes, Options]]:
    """Yield what to call each prompt, the boxes by class (None for none), and how to predict."""
    if not model.takes_prompts:
        yield "no prompts", None, Options()
        for size in sizes:
            yield f"no prompts at {size}", None, Options(output_size=(size, size))
        return
    rng = np.random.default_rng([len(case), *case.encode()])
    tight = {
        name: boxes_of(np.isin(reference, values), rng, 0)
        for name, values in zip(labels.names, labels.values, strict=True)
    }
    yield FILLED, tight, Options()
    yield ELLIPSE, tight, Options()
    yield "oracle", tight, Options()
    for jitter in JITTERS:
        moved = {
            name: boxes_of(np.isin(reference, values), rng, jitter)
            for name, values in zip(labels.names, labels.values, strict=True)
        }
        yield f"oracle {jitter} px", moved, Options()
    yield "auto", None, Options(prompt="auto")
    yield "none", None, Options(prompt="none")
    for size in sizes:
        yield f"oracle at {size}", tight, Options(output_size=(size, size))
        yield f"auto at {size}", None, Options(output_size=(size, size))


def boxes_of(mask: npt.NDArray[np.bool_], rng: np.random.Generator, jitter: int) -> npt.NDArray[np.float64]:
    """Return a box per slice that shows the mask, (n, 6), each side moved by up to `jitter` pixels."""
    rows = []
    for z in np.flatnonzero(mask.any((1, 2))):
        y, x = np.nonzero(mask[z])
        lower = np.array([y.min(), x.min()]) + rng.integers(-jitter, jitter + 1, 2)
        upper = np.array([y.max(), x.max()]) + 1 + rng.integers(-jitter, jitter + 1, 2)
        upper = np.maximum(upper, lower + 1)
        rows.append([z, *lower, z + 1, *upper])
    return np.array(rows, dtype=np.float64).reshape(len(rows), 6)


def filled(
    boxes: Mapping[str, npt.NDArray[np.float64]],
    labels: LabelSpace,
    like: npt.NDArray[np.integer],
    *,
    ellipse: bool,
) -> npt.NDArray[np.integer]:
    """Return a label map in which every box, or the ellipse in it, is of its class, the last one on top."""
    found = np.zeros_like(like)
    for name, values in zip(labels.names, labels.values, strict=True):
        for z0, y0, x0, z1, y1, x1 in boxes[name].astype(int):
            y, x = ((np.arange(n) * 2 + 1) / n - 1 for n in (y1 - y0, x1 - x0))
            inside = (y[:, None] ** 2 + x**2 <= 1) | (not ellipse)
            found[z0:z1, y0:y1, x0:x1][:, inside] = values[0]
    return found


def nearest(label: npt.NDArray[np.integer], size: tuple[int, int]) -> npt.NDArray[np.integer]:
    rows, columns = ((np.arange(n) + 0.5) * own / n for n, own in zip(size, label.shape[1:], strict=True))
    return label[:, rows.astype(int)][:, :, columns.astype(int)]


def mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


if __name__ == "__main__":
    main()
