"""One Hermes for six datasets against six supervised models of the same processor time, and what it is worth
as a start for a new sequence.

    python benchmarks/universal.py joint separate transfer turned --workspace .

The workspace has CHAOS, Synapse, LASeg, ACDC, MSCMRSeg and Hippocampus in raw_data/. ``joint`` trains one
network on fold 0 of all of them, without the domain LGE of MSCMRSeg. ``separate`` trains one ``supervised``
model per dataset, each for a sixth of the seconds that the joint training took. ``transfer`` makes a dataset
of the labelled LGE scans, whose patients the joint training has not seen, plans it for a start from the joint
network, and learns it from one case and from all but one; from random weights and from the joint network,
with nothing else that differs. Every patient is the validation case of one fold. ``turned`` asks the joint
network for hearts on these scans without any training on them, mirrored along every set of axes. What the
record has already is not trained again, and a training that was interrupted goes on. Nothing is selected:
Dice are those of the last weights on the validation cases, on the grid of 4 mm.
"""

import argparse
import json
import shutil
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measurement import read_log, training_seconds

from medplan import checkpoint, registry
from medplan.cli import main as medplan
from medplan.commands.planning import load_plan
from medplan.predict.folder import find_folds
from medplan.predict.sliding_window import predict_classes
from medplan.runtime import Runtime
from medplan.samples.cases import CaseStore
from medplan.train.budget import lasting
from medplan.train.loop import train
from medplan.train.validate import class_dice, make_validator
from medplan.workspace import Workspace

DATASETS = ("CHAOS", "Synapse", "LASeg", "ACDC", "MSCMRSeg", "Hippocampus")
UNIVERSAL, LGE = "Universal", "MSCMRLGE"
FOLDS = 4
SMALL = ("--spacing", "4", "--gpu-memory", "1")
PATCH = ("--patch-size", "32", "48", "48")
STARTS = ("random", "joint")
HEARTS = ("ACDC", "MSCMRSeg")
CURVE = 5
"""Validations in the course of a training on LGE."""
WITHOUT_LGE = ("--leave-out-domain", "LGE")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=["joint", "separate", "transfer", "turned"])
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--iters", type=int, default=3819, help="of the joint training")
    parser.add_argument("--transfer-iters", type=int, default=150, help="of each training on LGE")
    parser.add_argument("--labelled", nargs="+", type=int, default=[1, FOLDS - 1], help="cases of LGE")
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
            for labelled in options.labelled:
                name = plan_transfer(space, labelled)
                for fold, start in product(range(FOLDS), STARTS):
                    key = f"{name} {start} fold {fold}"
                    if key not in known:
                        save(part, key, transfer(space, name, start, fold, options.transfer_iters))
        elif part == "turned":
            for tasks in HEARTS:
                save(part, tasks, turned(space, plan_transfer(space, 1), tasks))


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


def plan_transfer(space: Workspace, labelled: int) -> str:
    """Plan LGE for a start from the joint network, and return the name of the plan."""
    name, first = f"{LGE}_{labelled}", space.run_folder(UNIVERSAL, "hermes", "default")
    call(space, "-d", LGE, "--name", name, "-m", "hermes", "--labelled", str(labelled), "--from", str(first))
    return name


def transfer(space: Workspace, name: str, start: str, fold: int, iterations: int) -> dict[str, Any]:
    """Return steps, seconds and Dice of the validation case of one fold of LGE."""
    first = space.run_folder(UNIVERSAL, "hermes", "default") if start == "joint" else None
    return fit(
        space, name, "hermes", run=start, iterations=iterations, fold=fold, start_from=first, points=CURVE
    )


def turned(space: Workspace, name: str, tasks: str) -> dict[str, float]:
    """Return the mean Dice on LGE of the joint network, asked for the tasks of another dataset, by the axes
    that the scans are mirrored along."""
    source = find_folds(space.run_folder(UNIVERSAL, "hermes", "default"))[0].checkpoint
    state = checkpoint.load(source)
    joint = checkpoint.plan_of(state, path=source)
    model = registry.find("hermes")(joint).eval()
    model.load_state_dict(state["weights"])
    plan, runtime = load_plan(space, name, "hermes"), Runtime.choose("cpu")
    (lge,), labels = plan.datasets, joint.dataset(tasks).labels
    assert labels.names == lge.labels.names
    folders = {LGE: space.preprocessed_folder(LGE, lge.preprocessed_name(plan.grid))}
    stores = [CaseStore(folders, plan, fold) for fold in range(FOLDS)]
    cases = [store[key] for store in stores for key in store.role("validation")]
    found = {}
    for axes in (axes for number in range(4) for axes in combinations((0, 1, 2), number)):
        dice = []
        for case in cases:
            pixels = np.flip(case.image((0, 0, 0), case.shape), [axis + 1 for axis in axes]).copy()
            codes = np.flip(case.label(), axes).copy()
            asked = replace(
                case, key=f"{tasks}/{case.key}", pixels=pixels, codes=codes, prompts={"modality": "unknown"}
            )
            with torch.no_grad():
                predicted = predict_classes(
                    model.predictor(asked, ()),
                    asked,
                    labels,
                    patch_size=joint.patch_size,
                    device=runtime.device,
                    autocast=runtime.autocast,
                )
            dice += class_dice(predicted, codes, labels).values()
        found["".join("zyx"[axis] for axis in axes) or "as stored"] = round(float(np.mean(dice)), 4)
    print(tasks, found, flush=True)
    return found


def fit(
    space: Workspace,
    name: str,
    method: str,
    *,
    run: str = "default",
    iterations: int | None = None,
    seconds: float | None = None,
    fold: int = 0,
    start_from: Path | None = None,
    points: int = 1,
) -> dict[str, Any]:
    """Train, and return steps, their seconds, and the Dice of each class on the fold's validation cases.

    Args:
        points: validations; their mean Dice by step is returned if there are several.
    """
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
    training = plan.training.of_length(iterations)
    plan = replace(plan, training=replace(training, validate_every=iterations // points))
    folder = space.run_folder(name, method, run) / f"fold_{fold}"
    torch.manual_seed(plan.training.seed)
    model = registry.find(method)(plan)
    if start_from is not None:
        source = find_folds(start_from)[0].checkpoint
        state = checkpoint.load(source)
        model.start_from(state["weights"], checkpoint.plan_of(state, path=source), where=str(source))
    validate = make_validator(plan, store, runtime=runtime)
    train(model, plan, store, folder, fold=fold, runtime=runtime, validate=validate, workers=0)
    lines = read_log(folder)
    curve = {line["step"]: line["validation"] for line in lines if "validation" in line}
    dice = {key: round(value, 4) for key, value in curve[iterations].items() if key != "score"}
    found = {
        "steps": iterations,
        "seconds": round(training_seconds(lines), 1),
        "mean": round(float(np.mean(list(dice.values()))), 4),
    }
    if points > 1:
        found["curve"] = {step: round(values["score"], 4) for step, values in curve.items()}
    print(f"{name} {method} {run} fold {fold}: {found}", flush=True)
    return {**found, "dice": dice}


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
