"""Resampling at the size of a CT, side by side with nnU-Net's own functions.

    python benchmarks/resample.py [--nnunet-python PATH/TO/python] [--scale 1]

Every measurement is one process on the same arrays, with two threads. The times held against the bounds are
those of the operation alone, without start and loading; the processor time ``cpu`` and the peak of the memory
are those of the whole process. nnU-Net takes the logits whole, medplan slab by slab, as its own sliding
window hands them on; both start from half precision. Bounds: image 0.08 with differences below 1e-5, 14
labels 0.05, 14-class logits back 0.06 of the time and 0.20 of the memory, with identical labels. nnU-Net
keeps resampled logits in their own half precision; where the labels differ, an interpolation in double
precision tells who is right.
"""

import argparse
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from measurement import Run, measure, shown, write_record

NATIVE, SPACING = (256, 512, 512), (1.25, 0.8, 0.8)
TARGET, TARGET_SPACING = (213, 273, 273), (1.5, 1.5, 1.5)
NUM_CLASSES = 14
JOBS = ("image", "labels", "logits")
TARGETS = {
    "image": {"seconds": 0.08},
    "labels": {"seconds": 0.05},
    "logits": {"seconds": 0.06, "memory": 0.20},
}

MEDPLAN = """
import sys, time
import numpy as np
job, source, target = sys.argv[1:4]
array = np.load(source, mmap_mode="r" if job == "logits" else None)
shapes = eval(sys.argv[4])
import torch
from medplan.data.images import Geometry
from medplan.data.labels import LabelSpace
from medplan.preprocess.geometry import Restoration
from medplan.preprocess.resample import resample_image, resample_label
from medplan.preprocess.restore import LabelRestorer
start, cpu = time.perf_counter(), time.process_time()
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
        # Opened anew, so that what was read does not stay in memory: the window hands over slab by slab too.
        slab = np.load(source, mmap_mode="r")[:, z : z + 32]
        restorer.add(torch.from_numpy(np.array(slab)))
    result = restorer.finish().classes
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
np.save(target, result)
"""

NNUNET = """
import sys, time
import numpy as np
job, source, target = sys.argv[1:4]
array = np.load(source)
shapes = eval(sys.argv[4])
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape as resample
small, large = (shapes["target_spacing"], shapes["spacing"])
start, cpu = time.perf_counter(), time.process_time()
if job == "image":
    result = resample(array, shapes["target"], large, small, is_seg=False, order=3, order_z=0)[0]
elif job == "labels":
    result = resample(array[None], shapes["target"], large, small, is_seg=True, order=1, order_z=0)[0]
else:
    result = resample(array, shapes["native"], small, large, is_seg=False, order=1, order_z=0)
    result = np.argmax(result, axis=0)
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
np.save(target, result.astype(np.float32 if job == "image" else np.int16))
"""

TAIL = "\nprint('RESULT', seconds)\nprint('RESULT', cpu)\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nnunet-python", help="interpreter of an environment with nnunetv2")
    parser.add_argument("--runs", type=int, default=3, help="of each; the fastest counts (default 3)")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--scale", type=float, default=1.0, help="of the size along each axis, to try it out")
    arguments = parser.parse_args()
    peer = arguments.nnunet_python
    native, target = (
        tuple(max(8, round(size * arguments.scale)) for size in shape) for shape in (NATIVE, TARGET)
    )
    figures: dict[str, Any] = {"native": list(native), "target": list(target)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder, native, target)
        for job in arguments.jobs:
            sides = {"medplan": (sys.executable, MEDPLAN)} | ({"nnunet": (peer, NNUNET)} if peer else {})
            runs = {
                side: min(
                    (run_job(*command, job, folder, side, native, target) for _ in range(arguments.runs)),
                    key=lambda run: run[0],
                )
                for side, command in sides.items()
            }
            for side, (seconds, run) in runs.items():
                print(f"{job:7s} {side:8s}{seconds:7.2f} s, {run.printed[1]:.5s} s CPU |{run}", flush=True)
            if peer:
                figures[job] = compare(job, runs, folder)
                print(shown(f"{job:7s} ratio", figures[job]["ratio"], TARGETS[job]))
                details = ("difference", "differing", "medplan_exact", "nnunet_exact")
                found = {key: figures[job][key] for key in details if key in figures[job]}
                print(f"{job:7s} {found}", flush=True)
    if peer:
        write_record("resample", figures, nnunet_python=peer)


def compare(job: str, runs: dict[str, tuple[float, Run]], folder: Path) -> dict[str, Any]:
    """Return the figures of both sides, their ratios, and how far the results differ.

    ``difference`` is the largest of the intensities, or the share of labels that differ.
    """
    (seconds, ours), (their_seconds, theirs) = runs["medplan"], runs["nnunet"]
    one, other = (np.load(folder / f"{job}_{side}.npy", mmap_mode="r") for side in runs)
    difference = np.abs(one - other).max() if job == "image" else np.mean(one != other)
    where = np.argwhere(one != other) if job == "logits" else np.zeros((0, 3), np.int64)
    return {
        "medplan": {"seconds": seconds, "operation_cpu_s": float(ours.printed[1]), "process": ours},
        "nnunet": {
            "seconds": their_seconds,
            "operation_cpu_s": float(theirs.printed[1]),
            "process": theirs,
        },
        "ratio": {
            "seconds": seconds / their_seconds,
            "operation cpu": float(ours.printed[1]) / float(theirs.printed[1]),
            "cpu": ours.cpu_s / theirs.cpu_s,
            "memory": ours.peak_rss_mib / theirs.peak_rss_mib,
        },
        "targets": TARGETS[job],
        "difference": float(difference),
        **(disputed(where, one, other, folder) if len(where) else {}),
    }


def disputed(
    where: npt.NDArray[np.int64], one: npt.NDArray[np.integer], other: npt.NDArray[np.integer], folder: Path
) -> dict[str, int]:
    """Count whose label is the arg-max of logits interpolated in double precision, where the two differ."""
    logits = np.load(folder / "logits.npy", mmap_mode="r")
    exact = np.zeros((len(logits), len(where)))
    axes = []
    for axis, new in enumerate(one.shape):
        old = logits.shape[1 + axis]
        position = np.clip((where[:, axis] + 0.5) * (old / new) - 0.5, 0, old - 1)
        lower = np.floor(position).astype(np.int64)
        axes.append(((lower, 1 - (position - lower)), (np.minimum(lower + 1, old - 1), position - lower)))
    for (z, at_z), (y, at_y), (x, at_x) in product(*axes):
        exact += logits[:, z, y, x].astype(np.float64) * (at_z * at_y * at_x)
    voxels = tuple(where.T)
    best = exact.argmax(axis=0)
    ours, theirs = (int((labels[voxels] == best).sum()) for labels in (one, other))
    return {"differing": len(where), "medplan_exact": ours, "nnunet_exact": theirs}


def run_job(
    python: str,
    script: str,
    job: str,
    folder: Path,
    side: str,
    native: tuple[int, ...],
    target: tuple[int, ...],
) -> tuple[float, Run]:
    """Return the seconds of the operation, and the whole process."""
    shapes = {"native": native, "spacing": SPACING, "target": target, "target_spacing": TARGET_SPACING}
    files = [folder / f"{job}.npy", folder / f"{job}_{side}.npy"]
    run = measure([python, "-c", script + TAIL, job, *files, repr(shapes)], {"OMP_NUM_THREADS": "2"})
    return float(run.printed[0]), run


def make_inputs(folder: Path, native: tuple[int, ...], target: tuple[int, ...]) -> None:
    """Write a smooth random image, a map of 14 ellipsoids, and logits made from them."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal([-(-size // 4) for size in native]).astype(np.float32)
    image = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)[tuple(map(slice, native))]
    np.save(folder / "image.npy", (image + rng.standard_normal(image.shape, dtype=np.float32) / 4)[None])
    balls = [(rng.uniform(-0.6, 0.6, 3), rng.uniform(0.1, 0.35, 3)) for _ in range(NUM_CLASSES)]
    labels = np.zeros(native, np.int16)
    for number, distance in enumerate(_distances(balls, native), start=1):
        labels[distance < 1] = number
    np.save(folder / "labels.npy", labels)
    logits = np.zeros((NUM_CLASSES, *target), np.float16)
    for number, distance in enumerate(_distances(balls[: NUM_CLASSES - 1], target), start=1):
        logits[number] = np.clip(4 * (1 - distance), -8, 8)
    np.save(folder / "logits.npy", logits)


def _distances(balls, shape):
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    for centre, radius in balls:
        z, y, x = (((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radius, strict=True))
        yield z[:, None, None] + y[:, None] + x


if __name__ == "__main__":
    main()
