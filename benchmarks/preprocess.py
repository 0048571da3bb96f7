"""Preprocessing ten volumes to 1.5 mm, whole processes, side by side with nnU-Net.

    python benchmarks/preprocess.py --la SOURCE [--nnunet-python PATH]

SOURCE holds the left-atrium set as UA-MT distributes it (``<id>/mri_norm2.h5``); without it ten random
volumes of that size are made. nnU-Net runs its default preprocessing with two processes on plans for the same
spacing, medplan two threads. Wall time is that of the whole command, memory the largest process and, since
nnU-Net has several, the sum over the tree. Bounds: 0.30 of the time, 0.33 of the memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

NAME, SPACING, TARGET = "Dataset901_LA", 0.625, 1.5
SHAPE = (88, 140, 183)

MEDPLAN = """
import sys
from pathlib import Path
from medplan.data.dataset import open_dataset
from medplan.plan.schema import DatasetPlan, Grid, Normalisation
from medplan.preprocess.run import preprocess
dataset = open_dataset(Path(sys.argv[1]))
plan = DatasetPlan(
    name=dataset.name, channels=dataset.channels, modalities=("MR",), labels=dataset.labels, folds=({},),
    normalisations=(Normalisation(scheme="zscore"),),
)
preprocess(dataset, plan, Grid(spacing_mm=(1.5,) * 3), Path(sys.argv[2]), workers=2)
"""

NNUNET = """
if __name__ == "__main__":
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
    preprocess_dataset(901, "nnUNetPlans", ["3d_fullres"], [2])
"""

NNUNET_PLAN = """
if __name__ == "__main__":
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset,
    plan_experiment_dataset extract_fingerprint_dataset(901, num_processes=2) plan_experiment_dataset(901,
    overwrite_target_spacing=(1.5, 1.5, 1.5))
"""


def make_dataset(raw: Path, source: Path | None) -> Path:
    """Write ten cases in nnU-Net's layout."""
    import SimpleITK as sitk

    folder = raw / NAME
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    files = sorted(source.rglob("mri_norm2.h5"))[:10] if source else []
    for number in range(10):
        if files:
            import h5py

            with h5py.File(files[number]) as file:
                pixels, label = (np.asarray(file[name]).transpose(2, 1, 0) for name in ("image", "label"))
        else:
            rng = np.random.default_rng(number)
            pixels = rng.standard_normal(SHAPE, dtype=np.float32)
            label = np.zeros(SHAPE, np.uint8)
            label[30:60, 50:90, 60:120] = 1
        for part, name, array in (
            ("imagesTr", f"la_{number}_0000", pixels.astype(np.float32)),
            ("labelsTr", f"la_{number}", label.astype(np.uint8)),
        ):
            image = sitk.GetImageFromArray(np.ascontiguousarray(array))
            image.SetSpacing((SPACING,) * 3)
            sitk.WriteImage(image, str(folder / part / f"{name}.nii.gz"), True)
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "atrium": 1},
        "numTraining": 10,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def measure(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Return wall seconds and the peak of the proportional memory of the process tree in MiB (Linux)."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            peak[0] = max(peak[0], sum(_proportional_mib(pid) for pid in _tree(process.pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if process.returncode:
        sys.exit(f"{command[0]} failed:\n{output[-2000:]}")
    return seconds, peak[0]


def _tree(root: int) -> list[int]:
    found = [root]
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found.extend(int(child) for child in children.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def _proportional_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--la", type=Path, help="folder of the left-atrium set")
    parser.add_argument("--nnunet-python", help="interpreter of an environment with nnunetv2")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the fastest counts (default 3)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = make_dataset(folder / "raw", arguments.la)
        environment = {
            **os.environ,
            "nnUNet_raw": str(folder / "raw"),
            "nnUNet_preprocessed": str(folder / "nnunet"),
            "nnUNet_results": str(folder / "results"),
        }
        runs = [
            measure([sys.executable, "-c", MEDPLAN, str(dataset), str(folder / f"medplan{i}")], environment)
            for i in range(arguments.repeats)
        ]
        ours = min(runs)
        figures = {"seconds": ours[0], "peak_mib": ours[1]}
        print(f"medplan {ours[0]:6.2f} s {ours[1]:6.0f} MiB", flush=True)
        if arguments.nnunet_python:
            # Its workers are spawned, so its code has to lie in files.
            for script, text in (("plan.py", NNUNET_PLAN), ("preprocess.py", NNUNET)):
                (folder / script).write_text(text)
            measure([arguments.nnunet_python, str(folder / "plan.py")], environment)
            command = [arguments.nnunet_python, str(folder / "preprocess.py")]
            theirs = min(measure(command, environment) for _ in range(arguments.repeats))
            figures |= {"nnunet_seconds": theirs[0], "nnunet_peak_mib": theirs[1]}
            figures |= {"ratio": ours[0] / theirs[0], "memory_ratio": ours[1] / theirs[1]}
            print(f"nnU-Net {theirs[0]:6.2f} s {theirs[1]:6.0f} MiB")
            print(f"time {figures['ratio']:.3f} (at most 0.30)")
            print(f"memory {figures['memory_ratio']:.3f} (at most 0.33)")
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
