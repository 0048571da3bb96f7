"""What the conformance suite should know of S&D Messenger, and a small one for its own tests."""

import numpy as np
import torch

from medplan.data.labels import LabelSpace
from medplan.method import Progress
from medplan.methods.sdmessenger import SDMessenger
from medplan.plan.schema import DatasetPlan, Grid, Normalisation, Plan, Pyramid, Training
from medplan.randomness import fold_in, generator
from medplan.samples.cases import Case
from medplan.train.loader import collate

RANK_TOLERANCE = None
"""Labelled samples attend to the unlabelled ones of their own rank, and what is pasted is drawn per rank."""

OVERFIT = {"iterations": 200, "batch_size": 2, "lr": 0.01}

ROLES = {"labelled": ("a", "b"), "unlabelled": ("c", "d", "e"), "validation": ("f",)}
NUM_STEPS = 10


def make_plan(*, dims=3, encoder="unet", num_classes=2, roles=ROLES, iterations=NUM_STEPS, seed=0, **config):
    side = 16 if encoder == "unet" else 32
    size = (8, side, side) if dims == 3 else (1, side, side)
    labels = LabelSpace(
        names=tuple(f"organ{n}" for n in range(1, num_classes)),
        values=tuple((n,) for n in range(1, num_classes)),
    )
    dataset = DatasetPlan(
        name="Toy",
        channels=("MR",),
        modalities=("MR",),
        labels=labels,
        normalisations=(Normalisation(scheme="zscore"),),
        folds=(dict(roles),),
    )
    halved, kernel = ((2, 2, 2), (3, 3, 3)) if dims == 3 else ((1, 2, 2), (1, 3, 3))
    pyramid = Pyramid(
        features=(4, 8),
        strides=((1, 1, 1), halved),
        kernels=(kernel,) * 2,
        blocks=(1, 1),
        decoder_blocks=(1,),
    )
    return Plan(
        name="Toy",
        method="sdmessenger",
        dims=dims,
        datasets=(dataset,),
        grid=Grid(spacing_mm=(1.0, 1.0, 1.0)),
        patch_size=size,
        encoder=encoder,
        pyramid=pyramid,
        training=Training(iterations=iterations, batch_size=2, lr=0.01, seed=seed),
        config=config,
    )


def make_method(plan):
    torch.manual_seed(3)
    return SDMessenger(plan).train()


class Store:
    """Cases in memory whose labels say when they are read."""

    def __init__(self, plan, *, shape=(10, 20, 20)):
        self.plan, self.labels_read = plan, []
        self.cases = {}
        for number, name in enumerate("abcdef"):
            rng = np.random.default_rng(number)
            codes = np.zeros(shape, np.int16)
            codes[3:7, 5:12, 6:14] = 1
            image = (rng.standard_normal((1, *shape)) + 3 * codes).astype(np.float32)
            self.cases[f"Toy/{name}"] = _Watched(
                key=f"Toy/{name}", pixels=image, codes=codes, locations={1: np.argwhere(codes == 1)}
            )

    def role(self, name):
        return self.plan.roles(0).get(name, ())

    def __getitem__(self, key):
        case = self.cases[key]
        object.__setattr__(case, "read", self.labels_read)
        return case

    def plan_of(self, key):
        return self.plan.datasets[0]


class _Watched(Case):
    def label(self, lower=None, upper=None):
        self.read.append(self.key)
        return super().label(lower, upper)


class Descent:
    """Implements `Update` with plain gradient descent, and remembers the gradients by name."""

    def __init__(self, method):
        self.method, self.optimizer = method, method.optimizers("train")["main"]
        self.gradient = {}

    def minimise(self, loss, name="main", *, keep_graph=False):
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(retain_graph=keep_graph)
        self.gradient = {
            name: None if parameter.grad is None else parameter.grad.clone()
            for name, parameter in self.method.network.named_parameters()
        }
        assert all(g is None or bool(g.isfinite().all()) for g in self.gradient.values())
        self.optimizer.step()


def make_batch(plan, store, step=0):
    method = SDMessenger(plan)
    (phase,) = method.phases()
    elements = [phase.sample(store, generator(plan.training.seed, step, i)) for i in range(phase.batch_size)]
    elements = [{**element, "seed": fold_in(step, i)} for i, element in enumerate(elements)]
    return phase.augment(collate(elements), torch.Generator().manual_seed(step))


def at(step, num_steps=NUM_STEPS):
    return Progress(phase="train", step=step, num_steps=num_steps)


def step(method, batch, number, update=None):
    torch.manual_seed(number)
    return method.training_step(dict(batch), update or Descent(method), at(number))
