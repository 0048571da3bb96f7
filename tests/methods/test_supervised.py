from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from medplan.data.labels import LabelSpace
from medplan.errors import MethodError, PlanError
from medplan.method import Progress
from medplan.methods.supervised import METHOD, Config
from medplan.plan.schema import DatasetPlan, Grid, Normalisation, Plan, Training
from medplan.plan.topology import make_pyramid
from medplan.samples.cases import Case, CaseStore


def make_plan(patch: tuple[int, int, int] = (8, 16, 16), **config: Any) -> Plan:
    dims = 2 if patch[0] == 1 else 3
    return Plan(
        name="Balls",
        method="supervised",
        dims=dims,
        datasets=(
            DatasetPlan(
                name="Balls",
                channels=("image",),
                modalities=("MR",),
                labels=LabelSpace(names=("ball",), values=((1,),)),
                normalisations=(Normalisation(scheme="zscore"),),
                folds=({"labelled": ("a", "b")},),
            ),
        ),
        grid=Grid(spacing_mm=(1.0, 1.0, 1.0)),
        patch_size=patch,
        encoder="unet",
        training=Training(iterations=30, batch_size=2, lr=0.01),
        pyramid=make_pyramid(patch, (1.0, 1.0, 1.0), dims, base_features=4, residual_blocks=(1,)),
        config=config,
    )


class Balls(CaseStore):
    """Two cases in memory, a bright ball each."""

    def __init__(self) -> None:
        self.cases: Mapping[str, Case] = {
            f"Balls/{name}": self.make(name, x) for name, x in (("a", 10), ("b", 14))
        }

    @staticmethod
    def make(name: str, x: int) -> Case:
        grid = np.stack(np.meshgrid(np.arange(12), np.arange(24), np.arange(24), indexing="ij"))
        ball = ((grid - np.array([6, 12, x])[:, None, None, None]) ** 2).sum(0) < 25
        noise = np.random.default_rng(x).standard_normal(ball.shape)
        return Case(
            key=f"Balls/{name}",
            pixels=(2.0 * ball + 0.1 * noise)[None].astype(np.float32),
            codes=ball.astype(np.int16),
            locations={1: np.argwhere(ball)},
        )

    def role(self, name: str) -> tuple[str, ...]:
        return tuple(self.cases) if name == "labelled" else ()

    def __getitem__(self, key: str) -> Case:
        return self.cases[key]


class Step:
    """An update that only steps."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def minimise(self, loss: torch.Tensor, name: str = "main", *, keep_graph: bool = False) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def train(method: Any, steps: int) -> list[float]:
    (phase,) = method.phases()
    store, optimizer = Balls(), method.optimizers("train")["main"]
    losses = []
    for step in range(steps):
        elements = [phase.sample(store, np.random.default_rng([step, i])) for i in range(phase.batch_size)]
        batch = {
            "image": [torch.from_numpy(element["image"]) for element in elements],
            "label": [torch.from_numpy(element["label"]) for element in elements],
            "transform": [element.get("transform") for element in elements],
        }
        batch = phase.augment(batch, torch.Generator().manual_seed(step)) if phase.augment else batch
        logged = method.training_step(
            batch, Step(optimizer), Progress(phase="train", step=step, num_steps=steps)
        )
        losses.append(float(logged["loss"]))
    return losses


def test_it_learns_a_bright_ball() -> None:
    torch.manual_seed(0)
    method = METHOD(make_plan(momentum=0.9))
    losses = train(method, 30)
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_every_trained_parameter_moves() -> None:
    torch.manual_seed(0)
    method = METHOD(make_plan())
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    train(method, 12)
    assert [name for name, p in method.named_parameters() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize("patch", [(8, 16, 16), (1, 16, 16)])
def test_logits_do_not_depend_on_the_batch(patch: tuple[int, int, int]) -> None:
    method = METHOD(make_plan(patch)).eval()
    predictor = method.predictor(Balls()["Balls/a"], ())
    patches = torch.randn(3, 1, *patch)
    with torch.no_grad():
        together = predictor(patches, [(0, 0, 0)] * 3)
        alone = predictor(patches[1:2], [(0, 0, 0)])
    assert together.shape == (3, 2, *patch)
    assert torch.allclose(together[1], alone[0], atol=1e-5)


def test_the_state_is_the_network_alone() -> None:
    method = METHOD(make_plan())
    assert all(name.startswith("network.") for name in method.state_dict())


def test_phases_follow_the_plan() -> None:
    (phase,) = METHOD(make_plan()).phases()
    assert (phase.num_steps, phase.batch_size) == (30, 2)
    assert phase.schedule(0.0) < 1e-3 and phase.schedule(0.5) == pytest.approx(0.5**0.9)
    (group,) = METHOD(make_plan()).optimizers("train")["main"].param_groups
    assert (group["lr"], group["weight_decay"]) == (0.01, 0.0)


def test_nnunets_recipe_is_at_hand() -> None:
    method = METHOD(make_plan(optimizer="sgd", warmup=0))
    (phase,) = method.phases()
    assert phase.schedule(0.0) == 1.0
    (group,) = method.optimizers("train")["main"].param_groups
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (
        0.01,
        0.99,
        True,
        0.0,
    )


def test_other_defaults_are_nnunets() -> None:
    assert Config() == Config(momentum=0.99, oversample=1 / 3, deep_supervision=True, batch_dice=None)


def test_a_plan_it_cannot_use_is_refused() -> None:
    with pytest.raises(MethodError, match="'pyramid'"):
        METHOD(replace(make_plan(), pyramid=None))
    with pytest.raises(PlanError, match="did you mean 'momentum'"):
        METHOD(make_plan(momentun=0.9))
