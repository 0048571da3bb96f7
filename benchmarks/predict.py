"""Prediction of one case, whole processes, side by side with nnU-Net and with equal networks.

    python benchmarks/predict.py --image SCAN.nii.gz [--nnunet-python PATH/TO/python]

Both sides predict the same scan at 1.5 mm with the same plain U-Net and the same random weights (made by
nnU-Net's environment), the same window and half overlap, no mirroring, on the same cores; of several runs the
fastest counts. Held against the bounds is ours in float32, the precision that nnU-Net uses on a CPU; ours as
it comes (bfloat16 where the CPU computes in it) is printed besides. Bounds: 0.30 of the time of nnU-Net's
default mode and 0.50 of its sequential mode (``-npp 0 -nps 0``).
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measurement import Run, measure, ratios, shown, write_record
from measurement import best as fastest

PATCH = (40, 64, 80)
SPACING_MM = (1.5, 1.5, 1.5)
FEATURES = (32, 64, 128, 256, 320)
STRIDES = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
TARGETS = {"default": {"wall": 0.30}, "sequential": {"wall": 0.50}}
PRECISIONS = ("fp32", "auto")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, required=True, help="one NIfTI scan of one channel")
    parser.add_argument("--nnunet-python", help="python of an environment with nnunetv2")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--untuned", action="store_true", help="also ours without the allocator's settings")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        predict(arguments.child, arguments.precision)
        return
    with tempfile.TemporaryDirectory() as scratch:
        compare(arguments, Path(scratch))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Run each side, print its figures and keep them."""
    (folder / "in").mkdir()
    ending = "".join(arguments.image.suffixes[-2:])
    shutil.copyfile(arguments.image, folder / "in" / f"case_0000{ending}")
    peer = arguments.nnunet_python
    if peer:
        subprocess.run([peer, "-c", PEER_MODEL, str(folder), json.dumps(settings())], check=True)
    write_model(folder)
    figures: dict[str, Any] = {}

    def run(name: str, command: Sequence[str], output: str, environment: dict[str, str]) -> Run:
        figures[name] = best(command, folder / output, arguments.runs, environment)
        print(f"{name:<22}{figures[name]}", flush=True)
        return figures[name]

    own = [sys.executable, __file__, "--image", str(arguments.image), "--child", str(folder), "--precision"]
    if arguments.untuned:
        # Any variable of this family tells medplan to leave the allocator alone; this one changes nothing.
        run("medplan untuned", [*own, "fp32"], "out_fp32", {"MALLOC_ARENA_MAX": "64"})
    ours = run("medplan", [*own, "fp32"], "out_fp32", {})
    run("medplan as it comes", [*own, "auto"], "out_auto", {})
    if not peer:
        return
    figures["ratio"], figures["targets"] = {}, TARGETS
    for mode, script in MODES.items():
        theirs = run(
            f"nnU-Net {mode}", [peer, "-c", script, str(folder)], "peer_out", peer_environment(folder)
        )
        figures["ratio"][mode] = ratios(ours, theirs)
        print(shown(f"ratio to {mode}", figures["ratio"][mode], TARGETS[mode]))
    figures["voxels alike"] = {name: agreement(folder, f"out_{name}") for name in PRECISIONS}
    print("voxels alike:", figures["voxels alike"])
    write_record("predict", figures, nnunet_python=peer)


def settings() -> dict[str, Any]:
    return {"patch": PATCH, "spacing": SPACING_MM, "features": FEATURES, "strides": STRIDES}


def best(command: Sequence[str], output: Path, runs: int, environment: dict[str, str]) -> Run:
    """Run a command several times from scratch; return the fastest run."""
    found = []
    for _ in range(runs):
        shutil.rmtree(output, ignore_errors=True)
        found.append(measure(command, environment))
    return fastest(found)


def predict(folder: Path, precision: str) -> None:
    """Predict in this process as the command line does."""
    from dataclasses import replace

    from medplan import registry
    from medplan.predict.model import Model
    from medplan.predict.run import predict as predict_files

    registry.find = lambda name: method(folder)  # type: ignore[assignment]
    model = Model.load(folder / "run", device="cpu")
    if precision == "fp32":
        model.runtime = replace(model.runtime, precision="fp32")
    predict_files(folder / "in", folder / f"out_{precision}", model)


def write_model(folder: Path) -> None:
    """Write a run folder with the peer's network, or one of the same shape."""
    import torch

    from medplan import checkpoint
    from medplan.data.labels import LabelSpace
    from medplan.plan.schema import DatasetPlan, Grid, Normalisation, Plan, Training

    dataset = DatasetPlan(
        name="Benchmark",
        channels=("MR",),
        modalities=("MR",),
        labels=LabelSpace(names=("atrium",), values=((1,),)),
        normalisations=(Normalisation(scheme="zscore", nonzero_only=False),),
        folds=({"labelled": ("case",)},),
    )
    plan = Plan(
        name="Benchmark",
        method="equal",
        dims=3,
        datasets=(dataset,),
        grid=Grid(spacing_mm=SPACING_MM, orientation=None, crop="nonzero"),
        patch_size=PATCH,
        encoder="plain",
        training=Training(iterations=1, batch_size=1, lr=0.01),
    )
    torch.manual_seed(0)
    facts = {"fold": 0, "step": 1, "score": None}
    checkpoint.save_weights(folder / "run" / "fold_0" / "best.pt", method(folder)(plan), plan, **facts)


def method(folder: Path) -> Any:
    """Return a method around a U-Net with nnU-Net's weights, or with random ones."""
    import torch

    from medplan.method import Method, Needs, Proposal

    class Equal(Method):
        needs = Needs()
        Config = dict

        def __init__(self, plan: Any) -> None:
            super().__init__(plan)
            self.network, weights = unet(), folder / "network.pt"
            if weights.is_file():
                self.network.load_state_dict(renamed(torch.load(weights)))

        @classmethod
        def propose(cls, situation: Any) -> Proposal:
            return Proposal(fits=True, score=0, reason="a benchmark")

        def phases(self) -> Any:
            return ()

        def optimizers(self, phase: str) -> Any:
            return {}

        def training_step(self, batch: Any, update: Any, at: Any) -> Any:
            return {}

        def predictor(self, case: Any, support: Any) -> Any:
            return lambda patches, corners: self.network(patches).float()

    return Equal


def renamed(state: dict[str, Any]) -> dict[str, Any]:
    """Return the weights of nnU-Net's network under the names of ours."""
    names = {f"up.{i}.": f"decoder.transpconvs.{i}." for i in range(len(FEATURES) - 1)}
    names["head."] = f"decoder.seg_layers.{len(FEATURES) - 2}."
    for ours, theirs, number in (("down", "encoder.stages.{}.0", 5), ("merge", "decoder.stages.{}", 4)):
        for stage in range(number):
            for layer in range(2):
                there = f"{theirs.format(stage)}.convs.{layer}"
                names[f"{ours}.{stage}.{3 * layer}."] = f"{there}.conv."
                names[f"{ours}.{stage}.{3 * layer + 1}."] = f"{there}.norm."
    parts = ("weight", "bias")
    return {ours + part: state[theirs + part] for ours, theirs in names.items() for part in parts}


def unet() -> Any:
    """Return a plain U-Net with two convolutions per stage, nnU-Net's shape."""
    import torch
    from torch import nn

    def block(inputs: int, outputs: int, stride: tuple[int, ...] = (1, 1, 1)) -> nn.Sequential:
        layers: list[nn.Module] = []
        for number in range(2):
            size = stride if number == 0 else (1, 1, 1)
            layers += [nn.Conv3d(inputs if number == 0 else outputs, outputs, 3, size, 1)]
            layers += [nn.InstanceNorm3d(outputs, affine=True), nn.LeakyReLU(inplace=True)]
        return nn.Sequential(*layers)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = (1, *FEATURES)
            pairs = zip(widths, FEATURES, STRIDES, strict=False)
            self.down = nn.ModuleList(block(a, b, stride) for a, b, stride in pairs)
            steps = list(zip(FEATURES[:0:-1], FEATURES[-2::-1], STRIDES[:0:-1], strict=True))
            self.up = nn.ModuleList(nn.ConvTranspose3d(a, b, stride, stride) for a, b, stride in steps)
            self.merge = nn.ModuleList(block(2 * b, b) for _, b, _ in steps)
            self.head = nn.Conv3d(FEATURES[0], 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            skips = []
            for stage in self.down:
                x = stage(x)
                skips.append(x)
            for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
                x = merge(torch.cat([up(x), skip], 1))
            return self.head(x)

    return Plain()


def peer_environment(folder: Path) -> dict[str, str]:
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    return {name: str(folder / "peer") for name in names}


def agreement(folder: Path, output: str) -> float:
    """Return the share of voxels in which our label map equals nnU-Net's."""
    import numpy as np

    from medplan.data.images import read_label

    (ours,) = (folder / output).glob("case.*")
    (theirs,) = (folder / "peer_out").glob("case.*")
    return float(np.mean(read_label(ours)[0] == read_label(theirs)[0]))


PEER_MODEL = """
import json, sys
from pathlib import Path
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet

folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
stages = len(settings["features"])
arguments = {
    "n_stages": stages, "features_per_stage": settings["features"], "kernel_sizes": [[3, 3, 3]] * stages,
    "strides": settings["strides"], "n_conv_per_stage": [2] * stages,
    "n_conv_per_stage_decoder": [2] * (stages - 1), "conv_bias": True, "norm_op_kwargs": {"eps": 1e-5,
    "affine": True}, "dropout_op_kwargs": None, "nonlin_kwargs": {"inplace": True},
}
torch.manual_seed(0)
network = PlainConvUNet(
    input_channels=1, num_classes=2, conv_op=torch.nn.Conv3d, norm_op=torch.nn.InstanceNorm3d,
    nonlin=torch.nn.LeakyReLU, deep_supervision=False, **arguments,
).eval()
torch.save(network.state_dict(), folder / "network.pt")
arguments |= {
    "conv_op": "torch.nn.modules.conv.Conv3d", "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "dropout_op": None, "nonlin": "torch.nn.LeakyReLU",
}
resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
configuration = {
    "data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
    "patch_size": settings["patch"], "spacing": settings["spacing"],
    "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False],
    "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": resampling,
    "resampling_fn_seg": "resample_data_or_seg_to_shape",
    "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
    "batch_dice": False,
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    },
}
plans = {
    "dataset_name": "Dataset900_B", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
    "configurations": {"3d_fullres": configuration}, "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {"0": {}},
    "original_median_spacing_after_transp": settings["spacing"],
    "original_median_shape_after_transp": settings["patch"], "experiment_planner_used": "ExperimentPlanner",
}
ending = ".nii.gz" if list((folder / "in").glob("*.nii.gz")) else ".nii"
dataset = {
    "channel_names": {"0": "MR"}, "labels": {"background": 0, "atrium": 1}, "numTraining": 1, "file_ending":
    ending
}
target = folder / "peer" / "model"
(target / "fold_0").mkdir(parents=True)
(target / "plans.json").write_text(json.dumps(plans))
(target / "dataset.json").write_text(json.dumps(dataset))
state = {
    "network_weights": network.state_dict(), "optimizer_state": {}, "trainer_name": "nnUNetTrainer",
    "init_args": {"configuration": "3d_fullres"}, "inference_allowed_mirroring_axes": None,
}
torch.save(state, target / "fold_0" / "checkpoint_final.pth")
"""

PEER_DEFAULT = """
import sys
from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder

if __name__ == "__main__":
    folder = sys.argv[1]
    sys.argv = [
        "predict", "-i", folder + "/in", "-o", folder + "/peer_out", "-m", folder + "/peer/model", "-f", "0",
        "--disable_tta", "-device", "cpu",
    ]
    predict_entry_point_modelfolder()
"""

# What nnUNetv2_predict does with -npp 0 -nps 0; the entry point for model folders cannot.
PEER_SEQUENTIAL = """
import os, sys
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

if __name__ == "__main__":
    folder = sys.argv[1]
    os.makedirs(folder + "/peer_out", exist_ok=True)
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(folder + "/peer/model", ["0"])
    predictor.predict_from_files_sequential(folder + "/in", folder + "/peer_out")
"""

MODES = {"default": PEER_DEFAULT, "sequential": PEER_SEQUENTIAL}


if __name__ == "__main__":
    main()
