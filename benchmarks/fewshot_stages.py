"""What each phase of DenseMP is worth at equal processor time: plan, train and score every arm.

    python benchmarks/fewshot_stages.py --workspace . --pretrain-on Radiology --seconds 120

Every arm but the first gets the same processor seconds, in the parts that `ARMS` says; steps follow from the
seconds that a step of each phase takes here. Fine-tuning alone learns at the rate of stage 2. Half of the
scans are trained on, the other half tested, one is the support; no slice that shows a tested organ is learnt
from. The first phase looks at the pictures alone, so that one run of it serves all sets and groups. Arms
whose figures are in ``--output`` are not done again.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import fewshot
import numpy as np
import torch

from medplan import checkpoint, registry
from medplan.plan.schema import Plan
from medplan.records import read_json, write_json
from medplan.runtime import Runtime
from medplan.samples.cases import CaseStore
from medplan.train.loop import train
from medplan.workspace import Workspace

ARMS = {
    "random encoder": (0.0, 0.0, 0.0),
    "stage 1": (1.0, 0.0, 0.0),
    "stages 1 + 2": (0.5, 0.5, 0.0),
    "stages 1 + 2 + fine-tuning": (0.5, 0.3, 0.2),
    "stage 2 alone": (0.0, 1.0, 0.0),
    "fine-tuning alone": (0.0, 0.0, 1.0),
}
GROUPS = {"kidneys": ("left kidney", "right kidney"), "liver + spleen": ("liver", "spleen")}
SPACING_MM = {"CHAOS": ("7.7", "2", "2"), "Synapse": ("5", "2", "2")}
PHASES = ("contrastive", "superpixel", "finetune")
PLANNING = [
    "--patch-size", "160", "160", "--encoder", "small", "--encoder-weights", "none", "--iters", "1000",
    "--set", "config.contrastive_side=96", "--set", "config.contrastive_stride=16",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--pretrain-on", required=True, help="dataset of pictures for the first phase")
    parser.add_argument("--sets", nargs="+", choices=list(SPACING_MM), default=list(SPACING_MM))
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seconds", type=float, default=120.0, help="processor time of an arm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="of every plan, as for 'medplan plan'")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/fewshot_stages.json"))
    options = parser.parse_args()
    rows = json.loads(options.output.read_text()) if options.output.is_file() else {}
    space, runtime = Workspace.open(options.workspace), Runtime.choose("cpu")
    for name in options.sets:
        for group in options.groups:
            plan = make_plan(space, name, group, options)
            for arm in options.arms:
                key = f"{name} {group}: {arm}"
                if key not in rows:
                    rows[key] = measure(space, plan, arm, options.seconds, runtime)
                    print(key, json.dumps(rows[key]), flush=True)
                    options.output.parent.mkdir(parents=True, exist_ok=True)
                    options.output.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def make_plan(space: Workspace, name: str, group: str, options: argparse.Namespace) -> Plan:
    """Plan and preprocess by the commands a user types; then cut the labelled scans into halves."""
    own = f"{name}_{group.split()[0]}"
    settings = [word for setting in options.set for word in ("--set", setting)]
    command = [
        "plan_and_preprocess", "-d", name, "-m", "densemp", "--name", own, "--pretrain-on",
        options.pretrain_on, "--novel", *GROUPS[group], "--spacing", *SPACING_MM[name], *PLANNING,
        "--seed", str(options.seed), *settings, "--workspace", str(space.root),
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "medplan.cli", *command], check=True)
    path = space.plan_path(own, "densemp")
    plan = read_json(Plan, path)
    dataset = plan.learned[0]
    support = dataset.folds[0]["support"]
    ids = sorted({case for role in dataset.folds[0].values() for case in role} - set(support))
    halves = {"labelled": tuple(ids[0::2]), "validation": tuple(ids[1::2]), "support": support}
    others = tuple(other for other in plan.datasets if other is not dataset)
    plan = replace(plan, datasets=(replace(dataset, folds=(halves,)), *others))
    write_json(plan, path)
    return plan


def measure(space: Workspace, plan: Plan, arm: str, seconds: float, runtime: Runtime) -> dict[str, Any]:
    """Train one arm and return its steps, its seconds and the Dice of every novel class by mode."""
    first, *others = (part * seconds for part in ARMS[arm])
    steps, spent, weights = [0, 0, 0], 0.0, None
    if first:
        weights, steps[0], spent = first_phase(space, plan, first, runtime)
    for number, part in enumerate(others, 1):
        if part:
            steps[number] = max(1, round(part / pace(space, plan.name, PHASES[number], runtime)))
    folder = space.run_folder(plan.name, "densemp", arm.replace(" ", "")) / "fold_0"
    if any(steps[1:]):
        spent += run(space, plan, (0, *steps[1:]), weights, folder, runtime)
    torch.manual_seed(plan.training.seed)
    method = registry.find("densemp")(replace(plan, encoder_weights=None))
    if any(steps[1:]):
        method.load_encoder(checkpoint.load(folder / "last.pt"))
    elif weights is not None:
        method.load_encoder(checkpoint.load(weights))
    method.eval()
    dice = fewshot.dice_of_all(method, plan, store_of(space, plan), plan.learned[0].novel, "cpu")
    return {"steps": steps, "seconds": round(spent, 1), "dice": dice}


def first_phase(space: Workspace, plan: Plan, seconds: float, runtime: Runtime) -> tuple[Path, int, float]:
    """Return the weights after so many seconds of the first phase, its steps and its seconds."""
    folder = space.root / "results" / f"stage1_{seconds:g}s_seed{plan.training.seed}"
    record, weights = folder / "steps.json", folder / "contrastive.pt"
    if not record.is_file():
        steps = max(1, round(seconds / pace(space, plan.name, "contrastive", runtime)))
        spent = run(space, plan, (steps, 1, 0), None, folder, runtime)
        record.write_text(json.dumps([steps, spent]))
    steps, spent = json.loads(record.read_text())
    return weights, steps, spent


@lru_cache
def pace(space: Workspace, name: str, phase: str, runtime: Runtime) -> float:
    """Return the processor seconds that a step takes: those of 24 steps without those of 4."""
    plan = read_json(Plan, space.plan_path(name, "densemp"))
    seconds = []
    # What is done once per process falls to the first run, which does not count.
    for turn, number in enumerate((4, 4, 24)):
        steps = tuple(number if phase == one else int(one == "superpixel") for one in PHASES)
        folder = space.root / "results" / "pace" / f"{name}_{phase}_{turn}"
        seconds.append(run(space, plan, steps, None, folder, runtime))
    return max(1e-3, (seconds[2] - seconds[1]) / 20)


def run(
    space: Workspace, plan: Plan, steps: tuple[int, ...], weights: Path | None, folder: Path, runtime: Runtime
) -> float:
    """Train with so many steps per phase, from weights of the backbone, and return the processor seconds."""
    training = replace(plan.training, iterations=sum(steps), checkpoint_every=10**6)
    config = {**plan.config, "shares": list(steps)}
    if not steps[1]:
        config["finetune_lr"] = training.lr
    plan = replace(
        plan,
        config=config,
        training=training,
        encoder_weights=None if weights is None else str(weights),
    )
    torch.manual_seed(training.seed)
    method = registry.find("densemp")(plan)
    if weights is not None:
        method.load_encoder(checkpoint.load(weights))
    start = time.process_time()
    train(method, plan, store_of(space, plan), folder, fold=0, runtime=runtime, workers=0, resume=False)
    return time.process_time() - start


def store_of(space: Workspace, plan: Plan) -> CaseStore:
    return CaseStore(fewshot.folders_of(space, plan), plan, 0)


def table(rows: dict[str, Any]) -> str:
    """Return mean Dice in percent, the modes in their order, a column per set and group."""
    columns = list(dict.fromkeys(key.split(": ")[0] for key in rows))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for arm in ARMS:
        cells = []
        for column in columns:
            dice = rows.get(f"{column}: {arm}", {}).get("dice")
            means = [100 * float(np.mean([of[mode] for of in dice.values()])) for mode in fewshot.MODES] if (
                dice) else []  # fmt: skip
            cells.append(" / ".join(f"{mean:.1f}" for mean in means) or "-")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
