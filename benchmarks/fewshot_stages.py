"""What each phase of DenseMP is worth at equal processor time: plan and train every arm, then score them.

    python benchmarks/fewshot_stages.py train --workspace . --pretrain-on Radiology256 --seconds 120
    python benchmarks/fewshot_stages.py score --workspace .

Every arm but the first gets the same processor seconds, in the parts that `ARMS` says. The first call
measures the seconds that a step of each phase takes and keeps them in the record, so that later calls take as
steps, on however busy a machine. Half of the scans are trained on, the other half tested, one is the support;
no slice that shows a tested organ is learnt from. With ``--choosing`` the half that is trained on is parted
again in the same way, so that settings can be chosen without the tested scans. The first phase looks at the
pictures alone: one run of it serves all sets and groups. Arms that are trained, or scored, are not done
again.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import fewshot
import numpy as np
import torch

from medplan import checkpoint, registry
from medplan.method import Method
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
}
GROUPS = {"kidneys": ("left kidney", "right kidney"), "liver + spleen": ("liver", "spleen")}
SPACING_MM = {"CHAOS": ("7.7", "2", "2"), "Synapse": ("5", "2", "2")}
PHASES = ("contrastive", "superpixel", "finetune")
PLANNING = [
    "--patch-size", "160", "160", "--encoder", "small", "--encoder-weights", "none", "--iters", "1000",
    "--set", "config.contrastive_side=96", "--set", "config.contrastive_stride=16",
    "--set", "config.key_momentum=0.99",
]  # fmt: skip
Record = dict[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("train", "score"))
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--pretrain-on", default="Radiology256", help="pictures for the first phase")
    parser.add_argument("--sets", nargs="+", choices=list(SPACING_MM), default=list(SPACING_MM))
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seconds", type=float, default=120.0, help="processor time of an arm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shots", type=int, default=1, help="examples of an organ, to score with")
    parser.add_argument("--choosing", action="store_true", help="leave the tested scans alone")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/fewshot_stages.json"))
    options = parser.parse_args()
    record: Record = {"pace": {}, "arms": {}}
    if options.output.is_file():
        record = json.loads(options.output.read_text())
    space, fits = Workspace.open(options.workspace), fewshot.Fits()
    dice = "dice" if options.shots == 1 else f"dice of {options.shots} shots"
    for name in options.sets:
        for group in options.groups:
            plan = make_plan(space, name, group, options)
            for arm in options.arms:
                key = f"{name} {group}: {arm}, {options.seconds:g} s, seed {options.seed}"
                row = record["arms"].setdefault(key, {})
                if options.what == "train" and "steps" not in row:
                    row |= train_arm(space, plan, arm, options.seconds, record["pace"])
                elif options.what == "score" and "steps" in row and dice not in row:
                    row[dice] = score_arm(space, plan, arm, options.seconds, fits, options.shots)
                else:
                    continue
                print(key, json.dumps(row), flush=True)
                keep(record, options.output)
    if options.what == "score":
        print(table(record["arms"], dice))


def make_plan(space: Workspace, name: str, group: str, options: argparse.Namespace) -> Plan:
    """Plan and preprocess by the commands a user types, unless done; then part the labelled scans."""
    own = f"{name}_{group.split()[0]}_seed{options.seed}" + "_choosing" * options.choosing
    path = space.plan_path(own, "densemp")
    if path.is_file():
        return read_json(Plan, path)
    command = [
        "plan_and_preprocess", "-d", name, "-m", "densemp", "--name", own, "--pretrain-on",
        options.pretrain_on, "--novel", *GROUPS[group], "--spacing", *SPACING_MM[name], *PLANNING,
        "--seed", str(options.seed), "--workspace", str(space.root),
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "medplan", *command], check=True)
    plan = read_json(Plan, path)
    dataset = plan.learned[0]
    support = dataset.folds[0]["support"]
    ids = sorted({case for role in dataset.folds[0].values() for case in role} - set(support))
    if options.choosing:
        ids = ids[0::2]
    halves = {"labelled": tuple(ids[0::2]), "validation": tuple(ids[1::2]), "support": support}
    others = tuple(other for other in plan.datasets if other is not dataset)
    plan = replace(plan, datasets=(replace(dataset, folds=(halves,)), *others))
    write_json(plan, path)
    return plan


def train_arm(
    space: Workspace, plan: Plan, arm: str, seconds: float, pace: dict[str, float]
) -> dict[str, Any]:
    """Train an arm; return its steps and the processor seconds that were spent on them here."""
    runtime = Runtime.choose("cpu")
    for phase in PHASES:
        if f"{plan.learned[0].name} {phase}" not in pace and any(ARMS[arm]):
            pace[f"{plan.learned[0].name} {phase}"] = seconds_of_a_step(space, plan, phase, runtime)
    steps = [
        round(part * seconds / pace[f"{plan.learned[0].name} {phase}"]) if part else 0
        for part, phase in zip(ARMS[arm], PHASES, strict=True)
    ]
    spent, first = 0.0, first_phase(space, plan, ARMS[arm][0] * seconds)
    if steps[0]:
        if not (first.parent / "steps.json").is_file():
            taken = run(space, plan, (steps[0], 1, 0), None, first.parent, runtime)
            (first.parent / "steps.json").write_text(json.dumps([steps[0], taken]))
        # As many as the first set took, whose run it is.
        steps[0], spent = json.loads((first.parent / "steps.json").read_text())
    if any(steps[1:]):
        folder = folder_of(space, plan, arm, seconds)
        spent += run(space, plan, (0, *steps[1:]), first if steps[0] else None, folder, runtime)
    return {"steps": steps, "seconds": round(spent, 1)}


def score_arm(
    space: Workspace, plan: Plan, arm: str, seconds: float, fits: fewshot.Fits, shots: int
) -> dict[str, dict[str, float]]:
    """Return the Dice of every novel class by mode."""
    method = method_of(space, plan, arm, seconds)
    store, classes = store_of(space, plan), plan.learned[0].novel
    return fewshot.dice_of_all(method, plan, store, classes, "cpu", fits, shots=shots)


def method_of(space: Workspace, plan: Plan, arm: str, seconds: float) -> Method:
    """Return an arm with its last weights, in eval mode."""
    torch.manual_seed(plan.training.seed)
    method = registry.find("densemp")(replace(plan, encoder_weights=None))
    if any(ARMS[arm][1:]):
        method.load_encoder(checkpoint.load(folder_of(space, plan, arm, seconds) / "last.pt"))
    elif ARMS[arm][0]:
        method.load_encoder(checkpoint.load(first_phase(space, plan, ARMS[arm][0] * seconds)))
    return method.eval()


def first_phase(space: Workspace, plan: Plan, seconds: float) -> Path:
    """Return where the weights lie after so many seconds of the first phase."""
    return space.root / "results" / f"stage1_{seconds:g}s_seed{plan.training.seed}" / "contrastive.pt"


def folder_of(space: Workspace, plan: Plan, arm: str, seconds: float) -> Path:
    return space.run_folder(plan.name, "densemp", f"{arm.replace(' ', '')}_{seconds:g}s") / "fold_0"


def seconds_of_a_step(space: Workspace, plan: Plan, phase: str, runtime: Runtime) -> float:
    """Return the processor seconds that a step takes: those of 24 steps without those of 4."""
    seconds = []
    # What is done once per process falls to the first run, which does not count.
    for number in (4, 4, 24):
        steps = tuple(number if phase == one else int(one == "superpixel") for one in PHASES)
        seconds.append(run(space, plan, steps, None, space.root / "results" / "pace", runtime))
    return max(1e-3, round((seconds[2] - seconds[1]) / 20, 4))


def run(
    space: Workspace, plan: Plan, steps: tuple[int, ...], weights: Path | None, folder: Path, runtime: Runtime
) -> float:
    """Train with so many steps per phase, from weights of the backbone, and return the processor seconds."""
    training = replace(plan.training, iterations=sum(steps), checkpoint_every=10**6)
    plan = replace(
        plan,
        config={**plan.config, "shares": list(steps)},
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


def keep(record: Record, path: Path) -> None:
    """Write the record, with what another process has added to the file meanwhile."""
    if path.is_file():
        other = json.loads(path.read_text())
        for key, row in other["arms"].items():
            record["arms"][key] = {**row, **record["arms"].get(key, {})}
        record["pace"] = {**other["pace"], **record["pace"]}
    record["arms"] = {key: row for key, row in record["arms"].items() if row}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def table(rows: dict[str, Any], which: str) -> str:
    """Return mean Dice in percent, the modes in their order, a column per set and group."""
    columns = list(dict.fromkeys(key.split(": ")[0] for key in rows))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for arm in dict.fromkeys(key.split(": ")[1] for key in rows):
        cells = []
        for column in columns:
            dice = rows.get(f"{column}: {arm}", {}).get(which)
            means = [100 * float(np.mean([of[mode] for of in dice.values()])) for mode in fewshot.MODES] if (
                dice) else []  # fmt: skip
            cells.append(" / ".join(f"{mean:.1f}" for mean in means) or "-")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
