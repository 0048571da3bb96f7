"""One Hermes for six datasets against six supervised models of the same processor time, and what it is worth
as a start for a new sequence.

    python benchmarks/universal.py joint separate transfer --workspace . --iters 1500

The workspace has CHAOS, Synapse, LASeg, ACDC, MSCMRSeg and Hippocampus in raw_data/. ``joint`` trains one
network on fold 0 of all of them, without the domain LGE of MSCMRSeg. ``separate`` trains one ``supervised``
model per dataset, each for a sixth of the seconds that the joint training took. ``transfer`` makes a dataset
of the labelled LGE scans, whose patients the joint training has not seen, and learns it from one case and
from all but one, from random weights and from the joint network; every patient is the test case of one fold.
Nothing is selected: Dice are those of the last weights on the validation cases, on the grid of 4 mm. Parts
that are finished are not done again.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from medplan.cli import main as medplan

DATASETS = ("CHAOS", "Synapse", "LASeg", "ACDC", "MSCMRSeg", "Hippocampus")
LGE = "MSCMRLGE"
FOLDS = 4
SMALL = ("--spacing", "4", "--gpu-memory", "1")
PATCH = ("--patch-size", "32", "48", "48")
PATCH_OF_LGE = ("--patch-size", "16", "32", "32")
WITHOUT_LGE = ("--leave-out-domain", "LGE")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=["joint", "separate", "transfer"])
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--iters", type=int, default=1500, help="of the joint training")
    parser.add_argument("--transfer-iters", type=int, default=150, help="of each training on LGE")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/universal.json"))
    options = parser.parse_args()
    space = options.workspace
    results = json.loads(options.output.read_text()) if options.output.is_file() else {}
    for part in options.parts:
        if part == "joint":
            results[part] = joint(space, options.iters)
        elif part == "separate":
            results[part] = separate(space, seconds_of(fold_folder(space, "Universal", "hermes")))
        else:
            results[part] = transfer(space, options.transfer_iters)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def joint(space: Path, iterations: int) -> dict[str, object]:
    """Return seconds and Dice by dataset of one network for all."""
    folder = fold_folder(space, "Universal", "hermes")
    if not is_trained(folder):
        call(space, "plan_and_preprocess", "-d", *DATASETS, "--name", "Universal", "-m", "hermes",
             *WITHOUT_LGE, *SMALL, *PATCH)  # fmt: skip
        train(space, "Universal", "hermes", iterations)
    dice = {name: dice_of(folder, name) for name in DATASETS}
    return {"seconds": seconds_of(folder), "steps": steps_of(folder), "dice": dice}


def separate(space: Path, seconds: float) -> dict[str, object]:
    """Return seconds and Dice of one model per dataset, which share `seconds`."""
    found: dict[str, object] = {}
    for name in DATASETS:
        folder = fold_folder(space, name, "supervised")
        if not is_trained(folder):
            domains = WITHOUT_LGE if name == "MSCMRSeg" else ()
            call(space, "plan_and_preprocess", "-d", name, "-m", "supervised", *SMALL, *domains)
            minutes = str(seconds / len(DATASETS) / 60)
            call(space, "train", "-d", name, "-m", "supervised", "--minutes", minutes, "--workers", "0")
        found[name] = {"seconds": seconds_of(folder), "steps": steps_of(folder), "dice": dice_of(folder)}
    return found


def transfer(space: Path, iterations: int) -> dict[str, object]:
    """Return the Dice of each test case by number of labelled cases and start."""
    make_lge(space)
    found: dict[str, object] = {}
    for labelled in (1, FOLDS - 1):
        for start in ("random", "joint"):
            name = f"{LGE}_{labelled}_{start}"
            shared = ("--set", f'config.shared={{"{LGE}": "MSCMRSeg"}}', "--set", "config.transfer=full")
            call(space, "plan_and_preprocess", "-d", LGE, "--name", name, "-m", "hermes", "--labelled",
                 str(labelled), *SMALL, *PATCH_OF_LGE, *(shared if start == "joint" else ()))  # fmt: skip
            first = ("--from", str(fold_folder(space, "Universal", "hermes").parent))
            for fold in range(FOLDS):
                if not is_trained(fold_folder(space, name, "hermes", fold)):
                    train(space, name, "hermes", iterations, "--fold", str(fold),
                          *(first if start == "joint" else ()))  # fmt: skip
            folders = [fold_folder(space, name, "hermes", fold) for fold in range(FOLDS)]
            found[f"{labelled} labelled, {start}"] = [dice_of(folder) for folder in folders]
    return found


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


def train(space: Path, name: str, method: str, iterations: int, *more: str) -> None:
    """Train with one validation, at the end."""
    call(space, "train", "-d", name, "-m", method, "--iters", str(iterations), "--workers", "0",
         "--set", f"training.validate_every={iterations}", *more)  # fmt: skip


def call(space: Path, *arguments: str) -> None:
    print("$ medplan", *arguments, flush=True)
    if code := medplan([*arguments, "--workspace", str(space)]):
        raise SystemExit(code)


def fold_folder(space: Path, name: str, method: str, fold: int = 0) -> Path:
    return space / "results" / name / method / "default" / f"fold_{fold}"


def dice_of(folder: Path, dataset: str | None = None) -> float:
    """Return the mean over the classes, of one dataset of several, of the mean over the validation cases."""
    last = [line["validation"] for line in lines_of(folder) if "validation" in line][-1]
    start = "" if dataset is None else f"{dataset}/"
    dice = [value for name, value in last.items() if name.startswith(start) and name != "score"]
    return round(float(np.mean(dice)), 3)


def seconds_of(folder: Path) -> float:
    """Return how long the steps of a training took, without validation."""
    total, before = 0.0, 0
    for line in lines_of(folder):
        if "seconds" in line:
            total += line["seconds"] * (line["step"] - before)
            before = line["step"]
    return round(total, 1)


def is_trained(folder: Path) -> bool:
    return (folder / "log.jsonl").is_file() and any("validation" in line for line in lines_of(folder))


def steps_of(folder: Path) -> int:
    return int(lines_of(folder)[-1]["step"])


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main()
