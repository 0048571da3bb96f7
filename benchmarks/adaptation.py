"""Does `sdmessenger` gain from images of a target domain, against the same network on the source alone?

    python benchmarks/adaptation.py AbdomenCTMR MSCMRSeg --workspace . --steps 2600 1500

The workspace has AbdomenCTMR (CT and MR) and MSCMRSeg (bSSFP and LGE) in raw_data/. Both directions of each
are learned in slices by small U-Nets: from the source alone, and with the images of the target; `--steps` of
the two arms, which should take equally long. Last weights, since no case of the target may choose. Dice are
means over cases and classes on the scans' own grids: of the source, of validation cases; of the target, of
all whose patient was not trained on (their images may have been, their labels never). What the record has
already is not trained again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from measurement import read_log, training_seconds

from medplan.cli import main as medplan
from medplan.data.dataset import open_dataset
from medplan.data.images import read_image, read_label
from medplan.evaluate.metrics import score_case
from medplan.predict.model import Model
from medplan.workspace import Workspace

DIRECTIONS = {
    "AbdomenCTMR": (("CT", "MR"), ("MR", "CT")),
    "MSCMRSeg": (("bSSFP", "LGE"), ("LGE", "bSSFP")),
}
SPACING = {"AbdomenCTMR": ("8", "6", "6"), "MSCMRSeg": ("8", "2.5", "2.5")}
SMALL = ("--dims", "2", "--patch-size", "64", "64", "--batch-size", "3", "--workers", "1")
NETWORK = ("--set", "pyramid.features=[16,32,64,96,128]", "--set", "pyramid.blocks=[1,1,2,2,2]")
ARMS = {"source": ("--set", "config.learn_from_unlabelled=false"), "both": ()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", choices=list(DIRECTIONS))
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--steps", nargs=2, type=int, required=True, metavar=("SOURCE", "BOTH"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "adaptation.json")
    options = parser.parse_args()
    space = Workspace.open(options.workspace)
    known: dict[str, Any] = json.loads(options.output.read_text()) if options.output.is_file() else {}
    for name in options.datasets:
        for source, target in DIRECTIONS[name]:
            for arm, steps in zip(ARMS, options.steps, strict=True):
                key = f"{source} to {target}, {arm}, seed {options.seed}"
                if key not in known:
                    known[key] = measure(space, name, source, target, arm, steps, options.seed)
                    print(f"{key}: {known[key]}", flush=True)
                    options.output.write_text(json.dumps(known, indent=1))


def measure(
    space: Workspace, name: str, source: str, target: str, arm: str, steps: int, seed: int
) -> dict[str, Any]:
    """Plan, train and score one arm of one direction."""
    plan, run = f"{source}to{target}", f"{arm}{seed}"
    at = ("--workspace", str(space.root))
    call("plan_and_preprocess", "-d", name, "-m", "sdmessenger", "--name", plan, "--source-domain", source,
         "--target-domain", target, "--spacing", *SPACING[name], *SMALL, *NETWORK, *at)  # fmt: skip
    call("train", "-d", plan, "-m", "sdmessenger", "--run", run, "--iters", str(steps), "--seed", str(seed),
         "--workers", "0", *ARMS[arm], *at)  # fmt: skip
    folder = space.run_folder(plan, "sdmessenger", run)
    dice = scores(space, name, folder, target)
    return {"steps": steps, "seconds": round(training_seconds(read_log(folder / "fold_0"))), **dice}


def scores(space: Workspace, name: str, run: Path, target: str) -> dict[str, Any]:
    """Return the Dice of the source's validation cases and of the target's, by class."""
    model = Model.load(run, checkpoint="last", device="cpu")
    dataset, roles = open_dataset(space.raw_folder(name)), model.dataset.folds[0]
    taught = {dataset.case(case).patient for case in (*roles["labelled"], *roles["validation"])} - {None}
    of_target = [case for case, domain in model.dataset.domains.items() if domain == target]
    groups = {
        "source": roles["validation"],
        "target": [case for case in of_target if dataset.case(case).patient not in taught],
    }
    found: dict[str, Any] = {}
    for group, cases in groups.items():
        rows = []
        for case in cases:
            files = dataset.case(case)
            if files.label is None:
                continue
            image = read_image(files.images, channels=len(model.dataset.channels))
            truth, geometry = read_label(files.label)
            labels = model.dataset.labels
            found_here = model.predict_image(image)
            each = score_case(found_here, truth, labels=labels, spacing_mm=geometry.spacing_mm, surface=False)
            rows.append([score.dice for score in each])
        by_class = np.nanmean(np.array(rows), axis=0)
        found[group] = {
            "cases": len(rows),
            "dice": round(float(np.nanmean(np.array(rows))), 4),
            "by_class": dict(zip(model.dataset.labels.names, by_class.round(3).tolist(), strict=True)),
        }
    return found


def call(*arguments: str) -> None:
    """Run a command of medplan; leave if it fails."""
    code = medplan([*arguments])
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
