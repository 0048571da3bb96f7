"""Peak memory of predicting a synthetic CT of 512 x 512 x 1000 voxels with 118 classes and a tiny network.

    python benchmarks/big_ct.py [--shape 1000 512 512] [--classes 118] [--patch 32 96 96]

The scan is written slice by slice, a model with random weights is made, and a fresh process runs the same
code as ``medplan predict``. Printed are its times and the peak of its resident memory, which is to stay below
6 GB. nnU-Net has no part in this: its logits alone, in half precision, would take more.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measurement import measure, write_record

SPACING_MM = (1.0, 0.8, 0.8)
TARGET_GB = 6.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(1000, 512, 512), help="voxels z y x")
    parser.add_argument("--classes", type=int, default=118, help="including background")
    parser.add_argument("--patch", type=int, nargs=3, default=(32, 96, 96), help="window z y x")
    parser.add_argument("--spacing", type=float, default=1.5, help="of the model, mm")
    parser.add_argument("--folder", type=Path, help="keep the scan and the model there")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        predict(arguments.child)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        if not (folder / "in" / "ct.nii").is_file():
            write_scan(folder / "in" / "ct.nii", arguments.shape)
        write_model(folder / "run", arguments.classes, tuple(arguments.patch), arguments.spacing)
        run = measure([sys.executable, __file__, "--child", folder], pause_s=0.2)
    peak = run.peak_rss_mib * 2**20 / 1e9
    prepared = [
        round(n * old / arguments.spacing) for n, old in zip(arguments.shape, SPACING_MM, strict=True)
    ]
    logits = 2 * arguments.classes * prepared[0] * prepared[1] * prepared[2] / 1e9
    print(f"{run}\npeak {peak:.2f} GB (below {TARGET_GB}); all logits in half precision: {logits:.1f} GB")
    figures = {"shape": list(arguments.shape), "classes": arguments.classes, "patch": list(arguments.patch)}
    figures |= {"medplan": run, "peak_gb": peak, "at most": TARGET_GB, "logits_gb": logits}
    write_record("big_ct", figures, nnunet_python=None)
    if peak >= TARGET_GB:
        sys.exit(f"{peak:.2f} GB is not below {TARGET_GB} GB")


def predict(folder: Path) -> None:
    """Predict the scan in this process."""
    from medplan import registry
    from medplan.predict.model import Model
    from medplan.predict.run import predict as predict_files

    registry.find = lambda name: tiny_method()  # type: ignore[assignment]
    predict_files(folder / "in", folder / "out", Model.load(folder / "run", device="cpu"))


def write_scan(path: Path, shape: Sequence[int]) -> None:
    """Write an int16 NIfTI of smooth tissue in air, a slice at a time."""
    import nibabel

    depth, height, width = shape
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((width, height, depth))
    header.set_zooms(tuple(reversed(SPACING_MM)))
    header.set_sform(np.diag([*reversed(SPACING_MM), 1.0]), code=1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1) - 0.5
    body = (y / 0.35) ** 2 + (x / 0.45) ** 2 < 1
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        header.write_to(file)
        file.write(b"\0" * (352 - file.tell()))
        for z in range(depth):
            tissue = (
                60 * np.sin(30 * x + z / 20) * np.cos(25 * y) + 40 + 10 * rng.standard_normal((height, width))
            )
            file.write(np.where(body, tissue, -1000).astype("<i2").tobytes())


def write_model(folder: Path, num_classes: int, patch: tuple[int, ...], spacing: float) -> None:
    """Write the checkpoint of a tiny network with random weights."""
    import torch

    from medplan import checkpoint
    from medplan.data.labels import LabelSpace
    from medplan.plan.schema import DatasetPlan, Grid, Normalisation, Plan, Training

    names = tuple(f"organ {number}" for number in range(1, num_classes))
    dataset = DatasetPlan(
        name="BigCT",
        channels=("CT",),
        modalities=("CT",),
        labels=LabelSpace(names=names, values=tuple((number,) for number in range(1, num_classes))),
        normalisations=(Normalisation(scheme="zscore", low=-100.0, high=200.0, mean=40.0, std=50.0),),
        folds=({"labelled": ("ct",)},),
    )
    plan = Plan(
        name="BigCT",
        method="tiny",
        dims=3,
        datasets=(dataset,),
        grid=Grid(spacing_mm=(spacing,) * 3, crop="body"),
        patch_size=(patch[0], patch[1], patch[2]),
        encoder="tiny",
        training=Training(iterations=1, batch_size=1, lr=0.01),
    )
    torch.manual_seed(0)
    facts = {"fold": 0, "step": 1, "score": None}
    checkpoint.save_weights(folder / "fold_0" / "best.pt", tiny_method()(plan), plan, **facts)


def tiny_method():  # type: ignore[no-untyped-def]
    """Return the class of a method with two convolutions, smooth enough to make coherent organs."""
    import torch
    from torch import nn

    from medplan.method import Method, Needs, Proposal

    class Tiny(Method):
        needs = Needs()
        Config = dict

        def __init__(self, plan) -> None:  # type: ignore[no-untyped-def]
            super().__init__(plan)
            outputs = plan.datasets[0].labels.num_outputs
            self.layers = nn.Sequential(
                nn.AvgPool3d(7, stride=4, padding=3),
                nn.Conv3d(1, 8, 3, padding=1),
                nn.ReLU(),
                nn.Upsample(scale_factor=4, mode="trilinear"),
                nn.Conv3d(8, outputs, 1),
            )

        @classmethod
        def propose(cls, situation):  # type: ignore[no-untyped-def]
            return Proposal(fits=True, score=0, reason="a benchmark")

        def phases(self):  # type: ignore[no-untyped-def]
            return ()

        def optimizers(self, phase: str):  # type: ignore[no-untyped-def]
            return {}

        def training_step(self, batch, update, at):  # type: ignore[no-untyped-def]
            return {}

        def predictor(self, case, support):  # type: ignore[no-untyped-def]
            def predict(patches: torch.Tensor, corners: object) -> torch.Tensor:
                return self.layers(patches).float()

            return predict

    return Tiny


if __name__ == "__main__":
    main()
