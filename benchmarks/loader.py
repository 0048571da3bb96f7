"""Patches per second of cropping and full augmentation on one core, ours and nnU-Net's on the same data.

    python benchmarks/loader.py [--patch 96 128 192] [--nnunet-python PATH/TO/python]

Phantoms of the size of cropped left-atrium scans are written as chunked arrays that both programs read.
Each side runs in its own process, on one core. Patches are counted per second of processor time, so that
other work on the machine does not count. Bound: at least 3 times nnU-Net's.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measurement import Run, measure, ratios, write_record

SHAPE = (88, 140, 190)
"""Voxels of a cropped left-atrium scan: z, y, x are 88, 135..148, 171..216 there."""
AT_LEAST = 3.0
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLOSC_NTHREADS")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patch", type=int, nargs=3, default=(96, 128, 192))
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring, after warming up")
    parser.add_argument("--nnunet-python", help="python of an environment with nnunetv2")
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    patch = tuple(arguments.patch)
    if arguments.child is not None:
        print("RESULT", per_second(arguments.child, patch, arguments.seconds))
        return
    os.environ |= ONE_THREAD
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    words = [*map(str, patch), "--seconds", str(arguments.seconds)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_cases(folder, patch, arguments.cases)
        ours = measure([sys.executable, __file__, "--child", folder, "--patch", *words])
        show("medplan", ours)
        if arguments.nnunet_python:
            options = [folder, json.dumps(list(patch)), str(arguments.seconds)]
            theirs = measure([arguments.nnunet_python, "-c", NNUNET, *options])
            show("nnU-Net", theirs)
            rates = {"medplan": float(ours.printed[0]), "nnunet": float(theirs.printed[0])}
            times = rates["medplan"] / rates["nnunet"]
            print(f"{times:.2f} times as many patches (at least {AT_LEAST:g})")
            figures: dict[str, Any] = {"patch": list(patch), "patches per CPU second": rates}
            figures |= {"times": times, "at least": AT_LEAST, "medplan": ours, "nnunet": theirs}
            figures["ratio"] = {"memory": ratios(ours, theirs)["memory"]}
            write_record("loader", figures, nnunet_python=arguments.nnunet_python)


def show(name: str, run: Run) -> None:
    print(f"{name}  {float(run.printed[0]):6.2f} patches per CPU second |{run}", flush=True)


def write_cases(folder: Path, patch: tuple[int, ...], num_cases: int) -> None:
    """Write noise over a smooth body and a blob as label, in the chunking of nnU-Net and medplan alike."""
    import blosc2
    import numpy as np
    from scipy.ndimage import gaussian_filter

    blosc2.set_nthreads(1)
    rng = np.random.default_rng(0)
    for number in range(num_cases):
        smooth = gaussian_filter(rng.standard_normal(SHAPE), 6)
        image = (smooth / smooth.std() + 0.1 * rng.standard_normal(SHAPE)).astype(np.float32)[None]
        label = (smooth > 1.5 * smooth.std()).astype(np.int16)[None]
        blocks = (1, *(min(32, size) for size in patch))
        for name, array in ((f"case{number}", image), (f"case{number}_seg", label)):
            settings = {"urlpath": str(folder / f"{name}.b2nd"), "chunks": (1, *SHAPE), "blocks": blocks}
            blosc2.asarray(array, **settings, cparams={"codec": blosc2.Codec.ZSTD, "clevel": 8})
        places = np.argwhere(label == 1)
        np.save(folder / f"case{number}.npy", places[rng.permutation(len(places))[:10000]])


def per_second(folder: Path, patch: tuple[int, ...], seconds: float) -> float:
    """Return patches per second of our sampler and augmentation in this process."""
    import blosc2
    import numpy as np
    import torch

    from medplan.machine import tune_allocator
    from medplan.method import Phase
    from medplan.samples.augment import Augmentation
    from medplan.samples.cases import Case
    from medplan.samples.sampling import Labelled
    from medplan.samples.spatial import Spatial
    from medplan.train.loader import collate, draw

    torch.set_num_threads(1)
    tune_allocator()

    class Store:
        """Cases of a folder; opened once, as the trainer's store keeps them."""

        def __init__(self) -> None:
            self.keys = tuple(sorted(f"LA/{path.stem}" for path in folder.glob("case*.npy")))
            self.cases = {key: self.open(key) for key in self.keys}

        def open(self, key: str) -> Case:
            name = key.split("/")[1]
            pixels = blosc2.open(str(folder / f"{name}.b2nd"), mode="r", dparams={"nthreads": 1})
            codes = blosc2.open(str(folder / f"{name}_seg.b2nd"), mode="r", dparams={"nthreads": 1})
            places = np.load(folder / f"{name}.npy")[:, 1:]
            return Case(key=key, pixels=pixels, codes=_Squeezed(codes), locations={1: places})

        def role(self, name: str) -> tuple[str, ...]:
            return self.keys

        def __getitem__(self, key: str) -> Case:
            return self.cases[key]

    store, size = Store(), (patch[0], patch[1], patch[2])
    sample = Labelled(size, spatial=Spatial.for_patch(size))
    augment = Augmentation(patch_size=size)
    phase = Phase(name="train", num_steps=10**6, batch_size=2, sample=sample)

    def batch(index: int) -> None:
        items = [draw(store, phase, 2 * index + offset, seed=0) for offset in range(2)]  # type: ignore[arg-type]
        with torch.no_grad():
            augment(collate(items), torch.Generator())

    return _per_second(batch, seconds)


class _Squeezed:
    """A label of shape (1, Z, Y, X) seen as (Z, Y, X)."""

    def __init__(self, array: object) -> None:
        self._array = array
        self.shape = array.shape[1:]  # type: ignore[attr-defined]
        self.dtype = array.dtype  # type: ignore[attr-defined]

    def __getitem__(self, box: tuple[slice, ...]) -> object:
        return self._array[(0, *box)]  # type: ignore[index]


def _per_second(batch: object, seconds: float) -> float:
    for index in range(5):
        batch(index)  # type: ignore[operator]
    start, count = time.process_time(), 0
    while time.process_time() - start < seconds:
        batch(5 + count)  # type: ignore[operator]
        count += 1
    return 2 * count / (time.process_time() - start)


NNUNET = """
import sys, time, json, pickle
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
folder, patch, seconds = Path(sys.argv[1]), json.loads(sys.argv[2]), float(sys.argv[3])
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
for path in folder.glob("case*.npy"):
    places = np.load(path)
    with open(path.with_suffix(".pkl"), "wb") as file:
        pickle.dump({"class_locations": {1: places}}, file)
radians = 30 / 360 * 2 * np.pi
rotation = (-radians, radians)
initial = get_patch_size(patch, rotation, rotation, rotation, (0.85, 1.25))
manager = LabelManager({"background": 0, "atrium": 1}, None)
transforms = nnUNetTrainer.get_training_transforms(patch, rotation, None, (0, 1, 2), False)
data = nnUNetDatasetBlosc2(str(folder))
loader = nnUNetDataLoader(
    data, 2, initial, patch, manager, oversample_foreground_percent=0.33, transforms=transforms
)
for _ in range(5):
    next(loader)
start, count = time.process_time(), 0
while time.process_time() - start < seconds:
    next(loader)
    count += 1
print("RESULT", 2 * count / (time.process_time() - start))
"""


if __name__ == "__main__":
    main()
