"""What the conformance suite should know of Bi-JROS, and a small one for its own tests."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medplan.data.labels import LabelSpace
from medplan.methods.bijros import BiJROS
from medplan.plan.schema import DatasetPlan, Grid, Normalisation, Plan, Training

CONFIG = {
    "channels": [4, 8, 8],
    "window": 5,
    "encoder_share": 0.34,
    "encoder_steps": 0,
}
TRAINING = {"batch_size": 2}
RANK_TOLERANCE = None
"""Batch norm: samples of a batch share their statistics, and the blend is drawn per rank."""
OVERFIT = {"lr": 0.01, "iterations": 300, "batch_size": 1}
OVERFIT_DICE = 0.7


def tiny_bijros(
    *,
    side: int | tuple[int, int, int] = 16,
    num_classes: int = 2,
    encoder: str = "bijros",
    labels: LabelSpace | None = None,
    encoder_weights: str | None = None,
    **config: Any,
) -> BiJROS:
    """Return a small method on cubes, with equal weights for equal settings."""
    shape = (side,) * 3 if isinstance(side, int) else side
    dataset = DatasetPlan(
        name="Brains",
        channels=("T1",),
        modalities=("MR",),
        labels=labels
        or LabelSpace(
            names=tuple(f"part {number}" for number in range(1, num_classes + 1)),
            values=tuple((number,) for number in range(1, num_classes + 1)),
        ),
        normalisations=(Normalisation(scheme="unit", percentiles=(0.5, 99.5)),),
        folds=({"atlas": ("a",), "unlabelled": ("b", "c"), "validation": ("v",)},),
    )
    plan = Plan(
        name="Brains",
        method="bijros",
        dims=3,
        datasets=(dataset,),
        grid=Grid(spacing_mm=None, shape=shape),
        patch_size=shape,
        encoder=encoder,
        encoder_weights=encoder_weights,
        training=Training(iterations=10, batch_size=1, lr=1e-4),
        config={**CONFIG, **config},
    )
    torch.manual_seed(0)
    return BiJROS(plan)


class Recorder:
    """An `Update` that keeps every gradient it is asked for, and steps only the optimisers it is told to.

    Attributes:
        seen: gradients by what they are: ``lower`` (of the lower step), ``gr``, ``gs`` and ``reg``.
    """

    def __init__(self, optimizers: dict[str, torch.optim.Optimizer], *, steps: tuple[str, ...]) -> None:
        self.optimizers, self.steps = optimizers, steps
        self.seen: dict[str, list[Tensor]] = {}

    def minimise(self, loss: Tensor, name: str = "main", *, keep_graph: bool = False) -> None:
        gradients = self._take(loss, name)
        self.seen["lower" if name == "seg" else name] = gradients
        self.apply(gradients, name)

    def gradients(
        self, loss: Tensor, name: str = "main", *, keep_graph: bool = False, inputs: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        gradients = self._take(loss, name, inputs)
        self.seen["gs" if "gr" in self.seen else "gr"] = gradients[: len(self._parameters(name))]
        return gradients

    def apply(self, gradients: list[Tensor], name: str = "main") -> None:
        if name in self.steps:
            for parameter, gradient in zip(self._parameters(name), gradients, strict=True):
                parameter.grad = gradient
            self.optimizers[name].step()

    def _take(self, loss: Tensor, name: str, inputs: Sequence[Tensor] = ()) -> list[Tensor]:
        parameters = [*self._parameters(name), *inputs]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    def _parameters(self, name: str) -> list[Tensor]:
        return [p for group in self.optimizers[name].param_groups for p in group["params"]]


class FixedNorm:
    """Keeps batch norms in eval mode whatever mode their network is put in."""

    @staticmethod
    def apply(module: nn.Module) -> None:
        for part in module.modules():
            if isinstance(part, nn.BatchNorm3d):
                part.eval()
                part.train = lambda mode=True, part=part: part  # type: ignore[method-assign, misc, assignment]
