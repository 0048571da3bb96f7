"""Data prepared on one machine can be trained with on another, where few packages are installed."""

import subprocess
import sys
from pathlib import Path

from medplan.cli import main
from tests.conftest import make_raw_dataset

ABSENT = (
    "SimpleITK", "nibabel", "batchgenerators", "acvl_utils", "cc3d", "matplotlib", "skimage", "torchvision",
    "segment_anything", "h5py", "tqdm",
)  # fmt: skip
"""Packages that training does without; it needs torch, numpy, scipy and blosc2."""

TRAIN = """
import importlib.machinery, sys

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {absent!r}:
            return super().find_spec(name, path, target)

sys.meta_path[:] = [
    Without if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path
]
from medplan import registry
from medplan.cli import main

for name in registry.names():
    registry.find(name)
for arguments in {trainings!r}:
    if main(arguments) != 0:
        sys.exit(1)
"""


SMALL = {
    "supervised": ["pyramid.features=[4,8,8]"],
    "hermes": ["config.channels=[4,8,8,8]", "config.depths=[1,1,1]", "config.head_size=4"],
}


def test_training_on_prepared_data_needs_few_packages(tmp_path: Path) -> None:
    make_raw_dataset(tmp_path / "raw_data" / "Dataset007_Phantom", num_labelled=6, num_test=0)
    trainings = []
    for method, settings in SMALL.items():
        plan = ["plan_and_preprocess", "-d", "Phantom", "-m", method, "--patch-size", "16", "16", "16"]
        for setting in settings:
            plan += ["--set", setting]
        assert main([*plan, "--workers", "0", "--workspace", str(tmp_path)]) == 0
        train = ["train", "-d", "Phantom", "-m", method, "--iters", "2", "--set", "training.validate_every=1"]
        trainings.append([*train, "--device", "cpu", "--workers", "2", "--workspace", str(tmp_path)])
    (tmp_path / "raw_data").rename(tmp_path / "left_behind")
    (tmp_path / "raw_data").mkdir()
    code = TRAIN.format(absent=set(ABSENT), trainings=trainings)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("unevaluated") == 2
    assert len(list(tmp_path.glob("results/*/*/default/fold_0/best.pt"))) == 2
