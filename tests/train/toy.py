"""Cases in memory and small methods: the trainer tested without files and without real networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from medplan.data.labels import LabelSpace
from medplan.method import Batch, Method, Needs, Phase, Predictor, Progress, Proposal, Situation, Update
from medplan.plan.schema import DatasetPlan, Grid, Normalisation, Plan, Training
from medplan.samples.augment import Augmentation
from medplan.samples.cases import Case
from medplan.samples.sampling import Labelled
from medplan.samples.spatial import Spatial
from tests.conftest import make_phantom

Voxel = tuple[int, int, int]


@dataclass(frozen=True)
class MemoryStore:
    """What `CaseStore` gives, from memory."""

    cases: Mapping[str, Case]
    roles: Mapping[str, tuple[str, ...]]
    plan: Plan = field(repr=False)

    def role(self, name: str) -> tuple[str, ...]:
        return self.roles.get(name, ())

    def __getitem__(self, key: str) -> Case:
        return self.cases[key]

    def plan_of(self, key: str) -> DatasetPlan:
        return self.plan.dataset(key.split("/", 1)[0])


def phantom_case(key: str, seed: int, *, shape: Voxel = (20, 28, 24), channels: int = 1) -> Case:
    phantom = make_phantom(seed, shape=shape)
    codes = phantom.label.astype(np.int16)
    pixels = np.repeat((phantom.image / 3)[None], channels, axis=0)
    locations = {code: np.argwhere(codes == code).astype(np.int32) for code in (1, 2)}
    return Case(
        key=key, pixels=pixels, codes=codes, spacing_mm=phantom.spacing_mm, locations=locations, domain="A"
    )


def toy_plan(method: str = "toy", *, patch_size: Voxel = (8, 12, 12), **training: Any) -> Plan:
    numbers = {"iterations": 6, "batch_size": 2, "lr": 0.05, "seed": 3, "validate_every": 100}
    dataset = DatasetPlan(
        name="Phantom",
        channels=("T1",),
        modalities=("MR",),
        labels=LabelSpace(names=("liver", "spleen"), values=((1,), (2,))),
        normalisations=(Normalisation(scheme="zscore"),),
        folds=({"labelled": ("a", "b", "c"), "unlabelled": ("d",), "validation": ("e",)},),
    )
    return Plan(
        name="Phantom",
        method=method,
        dims=3 if patch_size[0] > 1 else 2,
        datasets=(dataset,),
        grid=Grid(spacing_mm=(3.0, 1.5, 1.5)),
        patch_size=patch_size,
        encoder="unet",
        training=Training(**{**numbers, **training}),
    )


def toy_store(plan: Plan) -> MemoryStore:
    keys = {f"Phantom/{name}": number for number, name in enumerate("abcde")}
    cases = {key: phantom_case(key, seed) for key, seed in keys.items()}
    return MemoryStore(cases=cases, roles=plan.roles(0), plan=plan)


class Toy(Method):
    """Two phases, two optimisers in order with a second forward, dropout, and an average of past weights."""

    needs = Needs()
    Config: ClassVar[type] = object
    augments = True
    has_dropout = True

    @classmethod
    def propose(cls, situation: Situation) -> Proposal:
        return Proposal(fits=True, score=1, reason="toy")

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.plan = plan
        self.body = nn.Conv3d(1, 4, 3, padding=1)
        self.head = nn.Conv3d(4, plan.datasets[0].labels.num_outputs, 1)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("average", torch.zeros_like(self.head.weight))

    def phases(self) -> Sequence[Phase]:
        size, steps = self.plan.patch_size, self.plan.training.iterations
        first = steps // 3
        common = {
            "batch_size": self.plan.training.batch_size,
            "sample": Labelled(size, spatial=Spatial.for_patch(size) if self.augments else None),
            "augment": Augmentation(patch_size=size) if self.augments else None,
        }
        return (
            Phase(name="first", num_steps=first, validate=False, **common),
            Phase(name="second", num_steps=steps - first, **common),
        )

    def optimizers(self, phase: str) -> dict[str, Optimizer]:
        lr = self.plan.training.lr
        if phase == "first":
            return {"main": SGD(self.body.parameters(), lr=lr, momentum=0.9)}
        return {"body": Adam(self.body.parameters(), lr=lr), "head": SGD(self.head.parameters(), lr=lr)}

    def logits(self, image: Tensor) -> Tensor:
        hidden = F.relu(self.body(image))
        return self.head(F.dropout(hidden, 0.2, self.training and self.has_dropout))

    def training_step(self, batch: Batch, update: Update, at: Progress) -> dict[str, Tensor]:
        loss = F.cross_entropy(self.logits(batch["image"]), batch["label"].long())
        if at.phase == "first":
            update.minimise(loss)
            return {"loss": loss.detach()}
        update.minimise(loss, "head")
        again = F.cross_entropy(self.logits(batch["image"]), batch["label"].long())
        update.minimise(again, "body")
        self.average.lerp_(self.head.weight.detach(), 0.1)
        return {"loss": again.detach(), "before": loss.detach()}

    def predictor(self, case: Case, support: Sequence[Case]) -> Predictor:
        return lambda patches, corners, flipped=(): self.logits(patches).float()


class Steady(Toy):
    """Without anything random in a step: two ranks can be compared with one."""

    has_dropout = False


class Overflow(torch.autograd.Function):
    """Does nothing on the way there; sends back what float16 cannot hold."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return (gradients[0] * 1e30).half().float()


def build(plan: Plan, kind: type[Method] = Toy) -> Method:
    torch.manual_seed(0)
    return kind(plan)
