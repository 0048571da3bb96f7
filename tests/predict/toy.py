"""A method that knows the phantoms' intensities, and run folders of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medplan import checkpoint
from medplan.data.labels import LabelSpace
from medplan.method import Method, Needs, Phase, Predictor, Progress, Proposal, Situation, Update
from medplan.plan.schema import DatasetPlan, Grid, Normalisation, Plan, Training
from medplan.samples.cases import Case

INTENSITIES = (1.0, 3.0, 5.0)
"""Of the phantom's body, liver and spleen."""

LABELS = LabelSpace(names=("liver", "spleen"), values=((4,), (9,)))


class Toy(Method):
    """Gives every voxel the class whose intensity is nearest to its own."""

    needs = Needs(prompts=True)
    Config = dict

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        assert plan.encoder_weights is None
        self.layer = torch.nn.Conv3d(plan.num_channels, 3, 1)
        with torch.no_grad():
            self.layer.weight.zero_()
            self.layer.weight[:, 0, 0, 0, 0] = 2 * torch.tensor(INTENSITIES)
            self.layer.bias.copy_(-(torch.tensor(INTENSITIES) ** 2))

    @classmethod
    def propose(cls, situation: Situation) -> Proposal:
        return Proposal(fits=True, score=1, reason="a toy")

    def phases(self) -> Sequence[Phase]:
        return ()

    def optimizers(self, phase: str) -> dict[str, torch.optim.Optimizer]:
        return {}

    def training_step(self, batch: dict[str, Any], update: Update, at: Progress) -> dict[str, Tensor]:
        return {}

    def predictor(self, case: Case, support: Sequence[Case]) -> Predictor:
        shift = sum(float(other.image().mean()) for other in support)
        return lambda patches, corners, flipped=(): self.layer(patches + shift).float()


def make_plan(*, channels: tuple[str, ...] = ("T1",), labels: LabelSpace = LABELS, **changes: Any) -> Plan:
    dataset = DatasetPlan(
        name="Phantom",
        channels=channels,
        modalities=("MR",) * len(channels),
        labels=labels,
        normalisations=(Normalisation(scheme="none"),) * len(channels),
        folds=({"labelled": ("a",)},),
    )
    settings: dict[str, Any] = {
        "name": "Phantom",
        "method": "toy",
        "dims": 3,
        "datasets": (dataset,),
        "grid": Grid(spacing_mm=(1.5, 1.5, 1.5)),
        "patch_size": (16, 16, 16),
        "encoder": "unet",
        "encoder_weights": "not/there.pth",
        "training": Training(iterations=10, batch_size=2, lr=0.01),
    }
    return Plan(**(settings | changes))


def make_run(folder: Path, plan: Plan, *, folds: Sequence[int] = (0,), noise: float = 0.0) -> Path:
    """Write the checkpoints of a run; `noise` moves the weights of each fold."""
    for fold in folds:
        torch.manual_seed(fold)
        method = Toy(make_plan(channels=plan.datasets[0].channels, encoder_weights=None))
        with torch.no_grad():
            method.layer.bias += noise * torch.randn(3)
        checkpoint.save_weights(
            folder / f"fold_{fold}" / "best.pt", method, plan, fold=fold, step=10, score=None
        )
    return folder
