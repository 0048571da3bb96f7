"""Seconds of a CPU training step: plain, with our settings, and inside the trainer.

    python benchmarks/train_step.py [--patch 64 64 64] [--steps 5]

The network has the size of nnU-Net's for a 64^3 patch (plain convolutions, 32 to 320 features, about 30
million parameters), with deep supervision, Dice + cross-entropy, SGD and clipping. Each way runs in its own
process:

* ``default``: forward, backward, clip, step in float32, as nnU-Net does on a CPU;
* ``settings``: the same with our allocator settings, and bf16 where the CPU computes in it;
* ``trainer``: `medplan.train.loop.train` with the same network, loading included.

Seconds are wall clock, for a machine with nothing else to do. On a shared one, ``--cpu-time`` counts the
processor time of one thread instead.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medplan.data.cases import Case
from medplan.data.labels import LabelSpace
from medplan.data.sampling import Labelled
from medplan.method import Batch, Method, Needs, Phase, Predictor, Progress, Proposal, Situation, Update
from medplan.plan.schema import DatasetPlan, Grid, Normalisation, Plan, Training
from medplan.runtime import Runtime, tune_allocator
from medplan.train.loop import train

clock = time.process_time if "--cpu-time" in sys.argv else time.perf_counter
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
        self.starts: list[float]

    def phases(self) -> Sequence[Phase]:
        training = self.plan.training
        sample = Labelled(self.plan.patch_size)
        return (
            Phase(name="p", num_steps=training.iterations, batch_size=training.batch_size, sample=sample),
        )

    def optimizers(self, phase: str) -> dict[str, torch.optim.Optimizer]:
        return {"main": optimizer_of(self.network)}

    def training_step(self, batch: Batch, update: Update, at: Progress) -> dict[str, Tensor]:
        self.starts.append(clock())
        loss = loss_of(self.network(batch["image"]), batch["label"])
        update.minimise(loss)
        return {"loss": loss.detach()}

    def predictor(self, case: Case, support: Sequence[Case]) -> Predictor:
        return lambda patches, corners: self.network(patches)[0]


def optimizer_of(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5)


def bare(patch: tuple[int, ...], steps: int, *, tuned: bool) -> list[float]:
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
        start = clock()
        optimizer.zero_grad()
        with runtime.autocast():
            loss = loss_of(network(image), label)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        float(loss)
        seconds.append(clock() - start)
    return seconds[1:]


def inside_trainer(patch: tuple[int, ...], steps: int) -> list[float]:
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
    return [after - before for before, after in zip(method.starts[1:], method.starts[2:], strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--patch", type=int, nargs=3, default=(64, 64, 64))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2, help="the ways take turns; the fastest step counts")
    parser.add_argument("--cpu-time", action="store_true", help="processor time of one thread")
    parser.add_argument("--way", choices=["default", "settings", "trainer"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    patch = tuple(arguments.patch)
    if arguments.cpu_time:
        torch.set_num_threads(1)
    if arguments.way == "trainer":
        print(json.dumps(inside_trainer(patch, arguments.steps)))
        return
    if arguments.way:
        print(json.dumps(bare(patch, arguments.steps, tuned=arguments.way == "settings")))
        return
    best: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for way in ("default", "settings", "trainer"):
            options = ["--patch", *map(str, patch), "--steps", str(arguments.steps), "--way", way]
            options += ["--cpu-time"] * arguments.cpu_time
            done = subprocess.run(
                [sys.executable, __file__, *options], capture_output=True, text=True, check=True
            )
            seconds = json.loads(done.stdout.splitlines()[-1])
            best[way] = min(*seconds, best.get(way, float("inf")))
    shown = {way: round(seconds, 3) for way, seconds in best.items()}
    ratio = best["settings"] / best["default"]
    added = best["trainer"] / best["settings"] - 1
    print(json.dumps({"patch": patch, **shown, "ratio": round(ratio, 3), "added": round(added, 3)}))


if __name__ == "__main__":
    main()
