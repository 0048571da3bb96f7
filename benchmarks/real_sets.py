"""Take real data sets through every command on the CPU, and tabulate Dice and minutes.

    python benchmarks/real_sets.py --data ../shared/data --workspace real --iters 400

Each set is converted, planned, preprocessed, trained on fold 0, and its validation cases, which training has
not seen, are predicted and evaluated as files of their own. Runs that are finished are not done again.
"""

import argparse
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

SETS = {
    "LASeg": ("laseg", "la2018", ["--gpu-memory", "1.25"]),
    "Hippocampus": ("hippocampus", "msd_hippocampus", ["--gpu-memory", "1.25"]),
    "OASIS": (
        "oasis",
        "oasis_malf",
        ["--gpu-memory", "1.25", "--spacing", "3", "--label-groups", "miccai2012"],
    ),
    "CHAOS": ("chaos", "chaos_mr_t2spir", ["--gpu-memory", "1.25", "--spacing", "7.7", "2.5", "2.5"]),
    "Synapse": ("synapse", "synapse_sabs_ct", ["--gpu-memory", "1.25", "--spacing", "4"]),
    "ACDC": ("acdc", "acdc", ["--gpu-memory", "1.25", "--spacing", "10", "2", "2"]),
    "Kvasir": ("kvasir", "kvasir_seg", ["--gpu-memory", "1.25", "--set", "patch_size=[1,256,256]"]),
}


@dataclass(frozen=True)
class Row:
    name: str
    dice: dict[str, float]
    mean_dice: float
    num_validation: int
    iterations: int
    cpu_minutes: float
    wall_minutes: float
    commands: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the sets as published")
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--iters", type=int, default=300)
    parser.add_argument("--method", default="supervised")
    parser.add_argument("--only", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/real_sets.json"))
    options = parser.parse_args()
    options.workspace.mkdir(parents=True, exist_ok=True)
    rows = json.loads(options.output.read_text()) if options.output.is_file() else {}
    for name in options.only:
        rows[name] = asdict(run(name, options))
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def run(name: str, options: argparse.Namespace) -> Row:
    converter, source, planning = SETS[name]
    space, method = options.workspace, options.method
    commands: list[str] = []
    start, cpu = time.perf_counter(), cpu_seconds()

    def medplan(*arguments: str) -> None:
        commands.append(
            shlex.join(["medplan", *arguments]).replace(str(options.data), "DATA").replace(str(space), ".")
        )
        print(f"$ {commands[-1]}", flush=True)
        subprocess.run([sys.executable, "-m", "medplan", *arguments, "--workspace", str(space)], check=True)

    raw = space / "raw_data" / name
    medplan("convert", converter, "--source", str(options.data / source), "--target", str(raw))
    medplan("plan_and_preprocess", "-d", name, "-m", method, *planning)
    budget = ["--iters", str(options.iters), "--set", f"training.validate_every={options.iters}"]
    medplan("train", "-d", name, "-m", method, *budget)
    plan = json.loads((space / "plans" / name / f"{method}.json").read_text())
    validation = plan["datasets"][0]["folds"][0]["validation"]
    images, labels, predictions = (
        space / "held_out" / name / part for part in ("images", "labels", "predictions")
    )
    gather(raw / "imagesTr", images, validation)
    gather(raw / "labelsTr", labels, validation)
    medplan("predict", "-d", name, "-m", method, "-i", str(images), "-o", str(predictions))
    medplan("evaluate", "-i", str(predictions), "-r", str(labels))
    summary = json.loads((predictions / "summary.json").read_text())
    classes = plan["datasets"][0]["labels"]["names"]
    return Row(
        name=name,
        dice=dict(zip(classes, (score["Dice"] for score in summary["mean"].values()), strict=True)),
        mean_dice=summary["foreground_mean"]["Dice"],
        num_validation=len(validation),
        iterations=options.iters,
        cpu_minutes=(cpu_seconds() - cpu) / 60,
        wall_minutes=(time.perf_counter() - start) / 60,
        commands=tuple(commands),
    )


def gather(source: Path, target: Path, cases: list[str]) -> None:
    """Copy the files of some cases into a folder of their own."""
    target.mkdir(parents=True, exist_ok=True)
    for case in cases:
        for path in [*source.glob(f"{case}_[0-9][0-9][0-9][0-9].*"), *source.glob(f"{case}.*")]:
            shutil.copy(path, target / path.name)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def table(rows: dict[str, dict[str, object]]) -> str:
    lines = ["| set | mean Dice | validation cases | iterations | CPU minutes |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['mean_dice']:.3f} | {row['num_validation']} | {row['iterations']} "
            f"| {row['cpu_minutes']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    main()
