"""Seconds of a CPU training step: nnU-Net's, the same program written plainly, and ours.

    python benchmarks/train_step.py [--patch 64 64 64] [--steps 5] [--nnunet-python PATH/TO/python]

The network has the size of nnU-Net's for a 64^3 patch (plain convolutions, 32 to 320 features, about 16
million parameters), with deep supervision, Dice + cross-entropy, SGD and clipping, in batches of two. Each
way runs in its own process, the ways take turns, and the fastest step of each counts:

* ``nnunet``: `nnUNetTrainer.train_step` on random batches that lie ready, with that network as its plan;
* ``plain``: forward, backward, clip, step in float32 without nnU-Net;
* ``settings``: the same with our allocator settings, and bf16 where the CPU computes in it;
* ``trainer``: `medplan.train.loop.train` with the same network, loading included.

Bounds: a step of the trainer takes 0.5 of nnU-Net's, and 5 % more than ``settings``. Seconds are wall clock,
for a machine with nothing else to do; beside them stand those of the processor, of all threads.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measurement import Run, measure, write_record
from torch import Tensor, nn

from medplan.data.labels import LabelSpace
from medplan.machine import tune_allocator
from medplan.method import Batch, Method, Needs, Phase, Predictor, Progress, Proposal, Situation, Update
from medplan.plan.schema import DatasetPlan, Grid, Normalisation, Plan, Training
from medplan.runtime import Runtime
from medplan.samples.cases import Case
from medplan.samples.sampling import Labelled
from medplan.train.loop import train

TARGETS = {"trainer": 0.5, "added": 0.05}
FEATURES = (32, 64, 128, 256, 320)


class PlainUNet(nn.Module):
    """A U-Net of nnU-Net's plain kind: two convolutions per stage, transposed convolutions, deep
    supervision."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (1, *FEATURES)
        self.encoder = nn.ModuleList(
            nn.Sequential(block(inputs[i], width, 1 if i == 0 else 2), block(width, width, 1))
            for i, width in enumerate(FEATURES)
        )
        pairs = list(zip(FEATURES[:0:-1], FEATURES[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose3d(deep, fine, 2, 2) for deep, fine in pairs)
        self.decoder = nn.ModuleList(
            nn.Sequential(block(2 * fine, fine, 1), block(fine, fine, 1)) for _, fine in pairs
        )
        self.heads = nn.ModuleList(nn.Conv3d(fine, 2, 1) for _, fine in pairs)

    def forward(self, image: Tensor) -> list[Tensor]:
        skips, hidden = [], image
        for stage in self.encoder:
            hidden = stage(hidden)
            skips.append(hidden)
        outputs = []
        for up, decode, head, skip in zip(self.up, self.decoder, self.heads, skips[-2::-1], strict=True):
            hidden = decode(torch.cat([up(hidden), skip], 1))
            outputs.append(head(hidden))
        return outputs[::-1]


def block(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride, 1),
        nn.InstanceNorm3d(outputs, affine=True),
        nn.LeakyReLU(0.01, True),
    )


def loss_of(outputs: Sequence[Tensor], label: Tensor) -> Tensor:
    total = torch.zeros(())
    for level, logits in enumerate(outputs):
        target = label[:, :: 2**level, :: 2**level, :: 2**level].long()
        probability = logits.float().softmax(1)[:, 1]
        overlap = (probability * target).sum((1, 2, 3))
        dice = (2 * overlap + 1e-5) / (probability.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1e-5)
        total = total + (F.cross_entropy(logits.float(), target) - dice.mean()) / 2**level
    return total


class Bench(Method):
    """The network above, as a method."""

    needs = Needs()
    Config = object

    @classmethod
    def propose(cls, situation: Situation) -> Proposal:
        return Proposal(fits=True, score=0, reason="benchmark")

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.plan, self.network, self.starts = plan, PlainUNet(), []  # type: ignore[assignment]
        self.starts: list[tuple[float, float]]

    def phases(self) -> Sequence[Phase]:
        training = self.plan.training
        sample = Labelled(self.plan.patch_size)
        return (
            Phase(name="p", num_steps=training.iterations, batch_size=training.batch_size, sample=sample),
        )

    def optimizers(self, phase: str) -> dict[str, torch.optim.Optimizer]:
        return {"main": optimizer_of(self.network)}

    def training_step(self, batch: Batch, update: Update, at: Progress) -> dict[str, Tensor]:
        self.starts.append(clocks())
        loss = loss_of(self.network(batch["image"]), batch["label"])
        update.minimise(loss)
        return {"loss": loss.detach()}

    def predictor(self, case: Case, support: Sequence[Case]) -> Predictor:
        return lambda patches, corners: self.network(patches)[0]


def clocks() -> tuple[float, float]:
    """Return seconds of the wall clock, and of the processor for all threads."""
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    return end[0] - start[0], end[1] - start[1]


def optimizer_of(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5)


def bare(patch: tuple[int, ...], steps: int, *, tuned: bool) -> list[tuple[float, float]]:
    """Return the seconds of each step of the plain program."""
    runtime = Runtime.choose("cpu", precision="auto" if tuned else "fp32")
    if tuned:
        tune_allocator()
    torch.manual_seed(0)
    network = PlainUNet()
    optimizer = optimizer_of(network)
    image, label = torch.randn(2, 1, *patch), torch.randint(2, (2, *patch))
    seconds = []
    for _ in range(steps + 1):
        start = clocks()
        optimizer.zero_grad()
        with runtime.autocast():
            loss = loss_of(network(image), label)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        float(loss)
        seconds.append(since(start, clocks()))
    return seconds[1:]


def inside_trainer(patch: tuple[int, ...], steps: int) -> list[tuple[float, float]]:
    """Return the seconds from step to step of the trainer."""
    dataset = DatasetPlan(
        name="D",
        channels=("MR",),
        modalities=("MR",),
        labels=LabelSpace(names=("a",), values=((1,),)),
        normalisations=(Normalisation(scheme="zscore"),),
        folds=({"labelled": ("1",)},),
    )
    plan = Plan(
        name="D",
        method="bench",
        dims=3,
        datasets=(dataset,),
        grid=Grid(spacing_mm=(1, 1, 1)),
        patch_size=(patch[0], patch[1], patch[2]),
        encoder="unet",
        training=Training(iterations=steps + 2, batch_size=2, lr=0.01),
    )
    rng = np.random.default_rng(0)
    shape = tuple(2 * size for size in patch)
    codes = rng.integers(0, 2, shape).astype(np.int16)
    case = Case(key="D/1", pixels=rng.standard_normal((1, *shape), dtype=np.float32), codes=codes)

    class Store:
        def role(self, name: str) -> tuple[str, ...]:
            return ("D/1",) if name == "labelled" else ()

        def __getitem__(self, key: str) -> Case:
            return case

    torch.manual_seed(0)
    method = Bench(plan)
    store: Any = Store()
    with tempfile.TemporaryDirectory() as folder:
        train(method, plan, store, Path(folder), fold=0, runtime=Runtime.choose("cpu"))
    return [since(one, other) for one, other in zip(method.starts[1:], method.starts[2:], strict=False)]


NNUNET = """
import json, os, sys, time
patch, steps, folder = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ[name] = folder
# It infers from what lies there how cases are stored.
cases = os.path.join(folder, "Dataset900_B", "x")
os.makedirs(cases, exist_ok=True)
open(os.path.join(cases, "case.b2nd"), "w").close()
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
features = [32, 64, 128, 256, 320]
stages = len(features)
arguments = {
    "n_stages": stages, "features_per_stage": features, "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * stages, "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
    "n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1), "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
configuration = {
    "data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2, "patch_size": patch,
    "spacing": [1, 1, 1], "median_image_size_in_voxels": patch,
    "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False],
    "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": resampling,
    "resampling_fn_seg": "resample_data_or_seg_to_shape", "resampling_fn_seg_kwargs": resampling,
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": resampling, "batch_dice": False,
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": arguments, "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    },
}
plans = {
    "dataset_name": "Dataset900_B", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
    "configurations": {"3d_fullres": configuration}, "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {"0": {}}, "experiment_planner_used": "ExperimentPlanner",
    "original_median_spacing_after_transp": [1, 1, 1], "original_median_shape_after_transp": patch,
    "continue_training": False,
}
dataset = {
    "channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "numTraining": 1, "file_ending": ".nii"
}
trainer = nnUNetTrainer(plans, "3d_fullres", 0, dataset, device=torch.device("cpu"))
trainer.initialize()
trainer.network.train()
label = torch.randint(2, (2, 1, *patch)).float()
target = [label[:, :, ::n, ::n, ::n] for n in (1, 2, 4, 8)]
batch = {"data": torch.randn(2, 1, *patch), "target": target}
seconds = []
for _ in range(steps + 1):
    start = time.perf_counter(), time.process_time()
    trainer.train_step(batch)
    seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
print("RESULT", json.dumps(seconds[1:]))
print("RESULT", parameters)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patch", type=int, nargs=3, default=(64, 64, 64))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2, help="the ways take turns; the fastest step counts")
    parser.add_argument("--nnunet-python", help="python of an environment with nnunetv2")
    parser.add_argument("--way", choices=["plain", "settings", "trainer"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    patch = tuple(arguments.patch)
    if arguments.way:
        print("RESULT", json.dumps(take_steps(arguments.way, patch, arguments.steps)))
        return
    runs, steps = take_turns(arguments, patch)
    fastest = {way: min(taken) for way, taken in steps.items()}
    for way, (wall, cpu) in fastest.items():
        print(f"{way:<10}{wall:7.3f} s a step, {cpu:7.3f} s CPU |{runs[way]}", flush=True)
    added = fastest["trainer"][0] / fastest["settings"][0] - 1
    print(f"the trainer adds {added:+.3f} to the bare step (at most {TARGETS['added']})")
    if "nnunet" not in fastest:
        return
    ratio = {
        way: {
            "wall": fastest[way][0] / fastest["nnunet"][0],
            "cpu": fastest[way][1] / fastest["nnunet"][1],
            "memory": runs[way].peak_tree_mib / runs["nnunet"].peak_tree_mib,
        }
        for way in fastest
    }
    print(f"ratio of the trainer {ratio['trainer']} (at most {TARGETS['trainer']})")
    figures = {
        way: {"step_wall_s": a, "step_cpu_s": b, "process": runs[way]} for way, (a, b) in fastest.items()
    }
    figures |= {"patch": list(patch), "ratio": ratio, "added": added, "targets": TARGETS}
    write_record("train_step", figures, nnunet_python=arguments.nnunet_python)


def take_steps(way: str, patch: tuple[int, ...], steps: int) -> list[tuple[float, float]]:
    if way == "trainer":
        return inside_trainer(patch, steps)
    return bare(patch, steps, tuned=way == "settings")


def take_turns(
    arguments: argparse.Namespace, patch: tuple[int, ...]
) -> tuple[dict[str, Run], dict[str, list[list[float]]]]:
    """Return a whole process per way, and the seconds of every step of all its rounds."""
    runs: dict[str, Run] = {}
    steps: dict[str, list[list[float]]] = {}
    options = ["--patch", *map(str, patch), "--steps", str(arguments.steps)]
    commands = {
        way: [sys.executable, __file__, *options, "--way", way] for way in ("plain", "settings", "trainer")
    }
    with tempfile.TemporaryDirectory() as folder:
        if arguments.nnunet_python:
            words = [json.dumps(list(patch)), str(arguments.steps), folder]
            commands = {"nnunet": [arguments.nnunet_python, "-c", NNUNET, *words], **commands}
        for _ in range(arguments.rounds):
            for way, command in commands.items():
                runs[way] = measure(command)
                steps.setdefault(way, []).extend(json.loads(runs[way].printed[0]))
    return runs, steps


if __name__ == "__main__":
    main()
