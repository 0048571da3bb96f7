"""Processor seconds and peak memory of one bi-level step, as officially coded and as here.

    python benchmarks/bilevel_step.py [--side 64] [--ways official separate shared recompute] [--bf16]

Each way runs in its own process, on one pair of random cubes with 14 classes, two steps, of which the second
is timed:

* ``official``: the order of the official code: every pass anew, graphs kept over both gradients in theta and
  the one in omega;
* ``separate``: the same passes, with the graph cut at the warped label and the pseudo image;
* ``shared``: the default: both steps see one turned pair, so that encoder and registration run once;
* ``recompute``: the same, with activations computed twice (`config.recompute`).

The last column is what the planner predicts of a GPU, where convolutions are in bfloat16.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor

from medplan.data.labels import LabelSpace
from medplan.learning.registration import agreement
from medplan.machine import tune_allocator
from medplan.method import Phase, Progress
from medplan.methods.bijros import BiJROS
from medplan.networks.bilevel import hypergradient_factor
from medplan.networks.warp import warp
from medplan.plan import memory
from medplan.plan.schema import DatasetPlan, Grid, Normalisation, Plan, Training
from medplan.runtime import Runtime
from medplan.train.update import GradientUpdate

AT = Progress(phase="bilevel", step=0, num_steps=10)
Batch = dict[str, Tensor]


def plan_of(side: int, way: str) -> Plan:
    names = tuple(f"part {number}" for number in range(1, 14))
    dataset = DatasetPlan(
        name="Brains",
        channels=("T1",),
        modalities=("MR",),
        labels=LabelSpace(names=names, values=tuple((number,) for number in range(1, 14))),
        normalisations=(Normalisation(scheme="unit", percentiles=(0.5, 99.5)),),
        folds=({"atlas": ("a",), "unlabelled": ("b",)},),
    )
    return Plan(
        name="Brains",
        method="bijros",
        dims=3,
        datasets=(dataset,),
        grid=Grid(spacing_mm=None, shape=(side,) * 3),
        patch_size=(side,) * 3,
        encoder="bijros",
        training=Training(iterations=10, batch_size=1, lr=1e-4),
        config={"shared_passes": way in ("shared", "recompute"), "recompute": way == "recompute"},
    )


def official_step(method: BiJROS, batch: Batch, update: GradientUpdate) -> None:
    """Take the lower and the upper step with one graph for everything, kept until the end."""
    pairing, network, config = method.pairing, method.network, method.config
    blend = torch.full((1, 1, 1, 1, 1), 0.8)
    pair = pairing.register(batch)
    maps = network.encode(pairing.pseudo_image(pair, blend))
    target = warp(pair.members, pair.to_image)
    update.minimise(agreement(pairing.probabilities(maps, pair.size), target), "seg")
    pair = pairing.register(batch, "turned_")
    terms = pairing.both_ways(pair)
    images = terms["similarity"] + config.smooth * terms["smooth"] + config.cycle * terms["cycle"]
    upper = images + pairing.consistency(pair)
    maps = network.encode(pairing.pseudo_image(pair, blend))
    lower = agreement(pairing.probabilities(maps, pair.size), warp(pair.members, pair.to_image))
    g_r = update.gradients(upper, "seg", keep_graph=True)
    g_s = update.gradients(lower, "seg", keep_graph=True)
    update.minimise(upper + hypergradient_factor(g_r, g_s, limit=10) * lower, "reg")


def measure(way: str, side: int, *, bf16: bool) -> None:
    torch.manual_seed(0)
    tune_allocator()
    method = BiJROS(plan_of(side, way)).train()
    method.network.encoder.requires_grad_(False)
    image, other = torch.rand(2, 1, 1, side, side, side).unbind()
    label = (14 * torch.rand(1, side, side, side)).short()
    batch = {"image": image, "unlabelled_image": other, "label": label}
    batch |= {f"turned_{key}": value for key, value in batch.items()}
    stage = Phase(name="bilevel", num_steps=10, batch_size=1, sample=None)  # type: ignore[arg-type]
    runtime = Runtime.choose("cpu", precision="bf16" if bf16 else "fp32")
    update = GradientUpdate(method.optimizers("bilevel"), phase=stage, runtime=runtime)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = 0.0
    for _ in range(2 if side < 128 else 1):
        update.begin(AT, [])
        start = time.process_time()
        with runtime.autocast():
            if way == "official":
                official_step(method, batch, update)
            else:
                method.training_step(batch, update, AT)
        seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    predicted = memory.measure(BiJROS, plan_of(side, way)).total / 2**30
    step, process = (peak - before) / 2**20, peak / 2**20
    print(f"{way:10} {side:5} {seconds:9.1f} {step:11.2f} {process:10.2f} {predicted:10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--ways", nargs="+", default=["official", "separate", "shared", "recompute"])
    parser.add_argument(
        "--bf16", action="store_true", help="convolve in bfloat16, as training does if it can"
    )
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        measure(options.ways[0], options.side, bf16=options.bf16)
        return
    print(
        f"{'way':10} {'side':>5} {'seconds':>9} {'step in GB':>11} {'process':>10} {'predicted':>10}",
        flush=True,
    )
    for way in options.ways:
        command = [sys.executable, __file__, "--here", "--side", str(options.side), "--ways", way]
        command += ["--bf16"] if options.bf16 else []
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
