"""The verb demo: everything once, on brains made from a real template."""

import json
import shlex
import time
from pathlib import Path

from medplan.errors import MedplanError

__all__ = ["demo"]

NAME = "Brains"
NUM_LABELLED, NUM_UNLABELLED, NUM_TEST = 2, 6, 4
ITERATIONS = 600


def demo(*, folder: Path, method: str | None, iters: int | None, device: str) -> None:
    """Make a small brain dataset, then run the public commands on it, from planning to the report."""
    from medplan.data.synthetic_brains import make_brains

    start = time.perf_counter()
    raw, results = folder / "raw_data" / NAME, folder / "predictions"
    print(f"Making {NUM_LABELLED} labelled, {NUM_UNLABELLED} unlabelled and {NUM_TEST} test brains in {raw}")
    make_brains(raw, num_labelled=NUM_LABELLED, num_unlabelled=NUM_UNLABELLED, num_test=NUM_TEST)
    chosen, run = ["-m", method] if method else [], ["--workspace", str(folder)]
    size = ["--spacing", "3", "--patch-size", "32", "40", "32", "--gpu-memory", "1"]
    _medplan("plan_and_preprocess", "-d", NAME, *chosen, *size, *run)
    iterations = ["--iters", str(ITERATIONS if iters is None else iters)]
    _medplan("train", "-d", NAME, *chosen, "--fold", "all", *iterations, "--device", device, *run)
    images, labels = str(raw / "imagesTs"), str(raw / "labelsTs")
    _medplan("predict", "-i", images, "-o", str(results), "--device", device, *run)
    _medplan("evaluate", "-i", str(results), "-r", labels, *run)
    page = folder / "report.html"
    _medplan("report", "-i", str(results), "--images", images, "-o", str(page), *run)
    dice = json.loads((results / "summary.json").read_text())["foreground_mean"]["Dice"]
    minutes = (time.perf_counter() - start) / 60
    print(f"\nMean foreground Dice {dice:.3f} on {NUM_TEST} held-out brains, after {minutes:.1f} minutes.")
    print(f"Look at the report: {page.resolve()}")


def _medplan(*arguments: str) -> None:
    from medplan.cli import main

    print(f"\n$ medplan {shlex.join(arguments)}", flush=True)
    if main(arguments):
        raise MedplanError(f"The demo stopped at 'medplan {arguments[0]}'; see the error above.")
