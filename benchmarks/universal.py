"""One Hermes for six datasets against six supervised models of the same processor time, and what it is worth
as a start for a new sequence.

    python benchmarks/universal.py joint separate transfer --workspace .

The workspace has CHAOS, Synapse, LASeg, ACDC, MSCMRSeg and Hippocampus in raw_data/. ``joint`` trains one
network on fold 0 of all of them, without the domain LGE of MSCMRSeg. ``separate`` trains one ``supervised``
model per dataset, each for a sixth of the seconds that the joint training took. ``transfer`` makes a dataset
of the labelled LGE scans, whose patients the joint training has not seen, and learns it from one case and
from all but one, from random weights and from the joint network, at full and at a tenth of the rate; every
patient is the test case of one fold. What the record has already is not
trained again, and a training that was interrupted goes on. Nothing is selected:
Dice are those of the last weights on the validation cases, on the grid of 4 mm.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medplan import checkpoint, registry
from medplan.cli import main as medplan
from medplan.commands.planning import load_plan
from medplan.predict.folder import find_folds
from medplan.runtime import Runtime
from medplan.samples.cases import CaseStore
from medplan.train.budget import lasting
from medplan.train.loop import train
from medplan.train.validate import make_validator
from medplan.workspace import Workspace

DATASETS = ("CHAOS", "Synapse", "LASeg", "ACDC", "MSCMRSeg", "Hippocampus")
UNIVERSAL, LGE = "Universal", "MSCMRLGE"
FOLDS = 4
SMALL = ("--spacing", "4", "--gpu-memory", "1")
PATCH = ("--patch-size", "32", "48", "48")
PATCH_OF_LGE = ("--patch-size", "16", "32", "32")
SHARED = ("--set", f'config.shared={{"{LGE}": "MSCMRSeg"}}')
STARTS = {"random": (), "joint": SHARED, "slowly": (*SHARED, "--lr", "0.0002")}
"""What is set for a training on LGE: ``slowly`` learns at a tenth of the rate."""
WITHOUT_LGE = ("--leave-out-domain", "LGE")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=["joint", "separate", "transfer"])
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--iters", type=int, default=3819, help="of the joint training")
    parser.add_argument("--transfer-iters", type=int, default=500, help="of each training on LGE")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/universal.json"))
    options = parser.parse_args()
    space = Workspace.open(options.workspace)
    results = json.loads(options.output.read_text()) if options.output.is_file() else {}

    def save(part: str, name: str, found: dict[str, Any]) -> None:
        results.setdefault(part, {})[name] = found
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1) + "\n")

    for part in options.parts:
        known = results.get(part, {})
        if part == "joint" and not known:
            save(part, UNIVERSAL, joint(space, options.iters))
        elif part == "separate":
            seconds = results["joint"][UNIVERSAL]["seconds"] / len(DATASETS)
            for name in DATASETS:
                if name not in known:
                    save(part, name, separate(space, name, seconds))
        elif part == "transfer":
            make_lge(space.root)
            for labelled, start, fold in product((1, FOLDS - 1), STARTS, range(FOLDS)):
                name = f"{LGE}_{labelled}_{start}"
                if f"{name} fold {fold}" not in known:
                    found = transfer(space, name, labelled, STARTS[start], fold, options.transfer_iters)
                    save(part, f"{name} fold {fold}", found)


def joint(space: Workspace, iterations: int) -> dict[str, Any]:
    """Return seconds and Dice by dataset of one network for all."""
    call(space, "-d", *DATASETS, "--name", UNIVERSAL, "-m", "hermes", *WITHOUT_LGE, *SMALL, *PATCH)
    found = fit(space, UNIVERSAL, "hermes", iterations=iterations)
    of_dataset = {name: [v for key, v in found["dice"].items() if key.startswith(name)] for name in DATASETS}
    return {**found, "means": {name: round(float(np.mean(dice)), 4) for name, dice in of_dataset.items()}}


def separate(space: Workspace, name: str, seconds: float) -> dict[str, Any]:
    """Return seconds and Dice of a model for one dataset."""
    call(space, "-d", name, "-m", "supervised", *SMALL, *(WITHOUT_LGE if name == "MSCMRSeg" else ()))
    return fit(space, name, "supervised", seconds=seconds)


def transfer(
    space: Workspace, name: str, labelled: int, settings: Sequence[str], fold: int, iterations: int
) -> dict[str, Any]:
    """Return seconds and Dice of the test case of one fold of LGE; with settings the joint network is the
    start."""
    first = space.run_folder(UNIVERSAL, "hermes", "default") if settings else None
    call(space, "-d", LGE, "--name", name, "-m", "hermes", "--labelled", str(labelled), *SMALL,
         *PATCH_OF_LGE, *settings)  # fmt: skip
    return fit(space, name, "hermes", iterations=iterations, fold=fold, start_from=first)


def fit(
    space: Workspace,
    name: str,
    method: str,
    *,
    iterations: int | None = None,
    seconds: float | None = None,
    fold: int = 0,
    start_from: Path | None = None,
) -> dict[str, Any]:
    """Train, and return steps, their seconds, and the Dice of each class on the fold's validation cases."""
    plan = load_plan(space, name, method)
    folders = {
        dataset.name: space.preprocessed_folder(dataset.name, dataset.preprocessed_name(plan.grid))
        for dataset in plan.datasets
    }
    store, runtime = CaseStore(folders, plan, fold), Runtime.choose("cpu")
    if seconds is not None:
        plan = lasting(seconds / 60, plan, registry.find(method)(plan), store, runtime=runtime, workers=0)
        iterations = plan.training.iterations
    assert iterations is not None
    never = replace(plan.training, iterations=iterations, validate_every=iterations + 1, checkpoint_every=500)
    plan = replace(plan, training=never)
    folder = space.run_folder(name, method, "default") / f"fold_{fold}"
    torch.manual_seed(plan.training.seed)
    model = registry.find(method)(plan)
    if start_from is not None:
        source = find_folds(start_from)[0].checkpoint
        state = checkpoint.load(source)
        model.start_from(state["weights"], checkpoint.plan_of(state, path=source), where=str(source))
    train(model, plan, store, folder, fold=fold, runtime=runtime, workers=0)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "seconds" in line]
    before = [0, *(line["step"] for line in steps)]
    took = sum(line["seconds"] * (line["step"] - last) for line, last in zip(steps, before, strict=False))
    validate = make_validator(plan, store, runtime=runtime)
    dice = {} if validate is None else validate(model)
    dice = {key: round(value, 4) for key, value in dice.items() if key != "score"}
    print(f"{name} {method} fold {fold}: {iterations} steps, {took:.0f} s, {dice}", flush=True)
    mean = round(float(np.mean(list(dice.values()))), 4)
    return {"steps": iterations, "seconds": round(took, 1), "mean": mean, "dice": dice}


def make_lge(space: Path) -> None:
    """Make a raw dataset of the labelled LGE scans of MSCMRSeg."""
    source, target = space / "raw_data/MSCMRSeg", space / "raw_data" / LGE
    if target.is_dir():
        return
    for part in ("imagesTr", "labelsTr"):
        (target / part).mkdir(parents=True)
        for path in source.glob(f"{part}/*_lge*"):
            shutil.copy(path, target / part)
    described = json.loads((source / "dataset.json").read_text())
    number = len(list(target.glob("labelsTr/*")))
    kept = {key: described[key] for key in ("labels", "file_ending")}
    described = {"name": LGE, "channel_names": {"0": "LGE MR"}, "numTraining": number, **kept}
    (target / "dataset.json").write_text(json.dumps(described, indent=1))


def call(space: Workspace, *arguments: str) -> None:
    arguments = ("plan_and_preprocess", *arguments)
    print("$ medplan", *arguments, flush=True)
    if code := medplan([*arguments, "--workers", "0", "--workspace", str(space.root)]):
        raise SystemExit(code)


if __name__ == "__main__":
    main()
