"""Resampling at the size of a CT, side by side with nnU-Net's own functions.

    python benchmarks/resample.py [--nnunet-python PATH]

Every measurement is one process on the same arrays, with two threads. Ratios are medplan / nnU-Net; without
an nnU-Net interpreter only medplan's figures are printed. Bounds: image 0.08, 14 labels 0.05, 14-class logits
back 0.06 of the time and 0.20 of the memory, with identical labels.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

NATIVE, SPACING = (256, 512, 512), (1.25, 0.8, 0.8)
TARGET, TARGET_SPACING = (213, 273, 273), (1.5, 1.5, 1.5)
NUM_CLASSES = 14
JOBS = ("image", "labels", "logits")
BOUNDS = {"image": 0.08, "labels": 0.05, "logits": 0.06}

MEDPLAN = """
import resource, sys, time
import numpy as np
job, source, target = sys.argv[1:4]
array = np.load(source)
shapes = eval(sys.argv[4])
import torch
from medplan.data.images import Geometry
from medplan.data.labels import LabelSpace
from medplan.preprocess.geometry import Restoration
from medplan.preprocess.resample import resample_image, resample_label
from medplan.preprocess.restore import LabelRestorer
start = time.perf_counter()
if job == "image":
    result = resample_image(array, shapes["target"])[0]
elif job == "labels":
    result = resample_label(array, shapes["target"])
else:
    names = tuple(map(str, range(1, len(array))))
    way = Restoration(
        native=Geometry(shape=shapes["native"], spacing_mm=shapes["spacing"]), axes=(0, 1, 2),
        flipped=(False,) * 3, lower=(0, 0, 0), upper=shapes["native"], shape=shapes["target"],
    )
    labels = LabelSpace(names=names, values=tuple((int(name),) for name in names))
    restorer = LabelRestorer(way, labels)
    for z in range(0, array.shape[1], 32):
        restorer.add(torch.from_numpy(array[:, z : z + 32]))
    result = restorer.finish().classes
seconds = time.perf_counter() - start
np.save(target, result)
"""

NNUNET = """
import resource, sys, time
import numpy as np
job, source, target = sys.argv[1:4]
array = np.load(source)
shapes = eval(sys.argv[4])
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape as resample
small, large = (shapes["target_spacing"], shapes["spacing"])
start = time.perf_counter()
if job == "image":
    result = resample(array, shapes["target"], large, small, is_seg=False, order=3, order_z=0)[0]
elif job == "labels":
    result = resample(array[None], shapes["target"], large, small, is_seg=True, order=1, order_z=0)[0]
else:
    result = resample(array, shapes["native"], small, large, is_seg=False, order=1, order_z=0)
    result = np.argmax(result, axis=0)
seconds = time.perf_counter() - start
np.save(target, result.astype(np.float32 if job == "image" else np.int16))
"""

TAIL = "\nprint('RESULT', seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"


def make_inputs(folder: Path) -> None:
    """Write a smooth random image, a map of 14 ellipsoids, and logits made from them."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((64, 128, 128)).astype(np.float32)
    image = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)
    np.save(folder / "image.npy", (image + rng.standard_normal(image.shape, dtype=np.float32) / 4)[None])
    balls = [(rng.uniform(-0.6, 0.6, 3), rng.uniform(0.1, 0.35, 3)) for _ in range(NUM_CLASSES)]
    labels = np.zeros(NATIVE, np.int16)
    for number, distance in enumerate(_distances(balls, NATIVE), start=1):
        labels[distance < 1] = number
    np.save(folder / "labels.npy", labels)
    logits = np.zeros((NUM_CLASSES, *TARGET), np.float16)
    for number, distance in enumerate(_distances(balls[: NUM_CLASSES - 1], TARGET), start=1):
        logits[number] = np.clip(4 * (1 - distance), -8, 8)
    np.save(folder / "logits.npy", logits)


def _distances(balls, shape):
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    for centre, radius in balls:
        z, y, x = (((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radius, strict=True))
        yield z[:, None, None] + y[:, None] + x


def measure(python: str, script: str, job: str, folder: Path, name: str) -> tuple[float, float]:
    """Return seconds of the operation and the peak memory of its process in MiB."""
    shapes = {"native": NATIVE, "spacing": SPACING, "target": TARGET, "target_spacing": TARGET_SPACING}
    files = [str(folder / f"{job}.npy"), str(folder / f"{job}_{name}.npy")]
    command = [python, "-c", script + TAIL, job, *files, repr(shapes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT")), None)
    if line is None:
        sys.exit(f"{name} failed at {job}:\n{done.stderr[-2000:]}")
    return float(line.split()[1]), float(line.split()[2])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nnunet-python", help="interpreter of an environment with nnunetv2")
    parser.add_argument(
        "--repeats", type=int, default=3, help="medplan's runs; the fastest counts (default 3)"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder)
        for job in JOBS:
            runs = [
                measure(sys.executable, MEDPLAN, job, folder, "medplan") for _ in range(arguments.repeats)
            ]
            ours = min(runs)
            figures[job] = {"seconds": ours[0], "peak_mib": ours[1]}
            line = f"{job:7s} medplan {ours[0]:6.2f} s {ours[1]:6.0f} MiB"
            if arguments.nnunet_python:
                theirs = measure(arguments.nnunet_python, NNUNET, job, folder, "nnunet")
                one, other = (
                    np.load(folder / f"{job}_{who}.npy", mmap_mode="r") for who in ("medplan", "nnunet")
                )
                difference = np.abs(one - other).max() if job == "image" else np.mean(one != other)
                figures[job] |= {
                    "nnunet_seconds": theirs[0],
                    "nnunet_peak_mib": theirs[1],
                    "ratio": ours[0] / theirs[0],
                    "memory_ratio": ours[1] / theirs[1],
                    "bound": BOUNDS[job],
                    "difference": float(difference),
                }
                line += f" | nnU-Net {theirs[0]:6.2f} s {theirs[1]:6.0f} MiB"
                line += f" | time {ours[0] / theirs[0]:.3f} (at most {BOUNDS[job]})"
                line += f" memory {ours[1] / theirs[1]:.2f}"
                measure_of = "largest difference" if job == "image" else "share that differs"
                line += f" | {measure_of} {difference:.1e}"
            print(line, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
