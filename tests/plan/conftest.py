"""Fingerprints of imaginary datasets, and a toy method."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from medplan.data.labels import LabelSpace
from medplan.method import Batch, Method, Needs, Phase, Predictor, Progress, Proposal, Situation, Update
from medplan.methods.supervised import Config
from medplan.plan.facts import CaseFacts, ClassFacts
from medplan.plan.fingerprint import Fingerprint
from medplan.plan.overrides import Overrides
from medplan.plan.planner import decide
from medplan.plan.schema import Modality, Plan
from medplan.plan.statistics import Intensity
from medplan.samples.cases import Case
from medplan.samples.sampling import Labelled


def make_fingerprint(
    name: str = "Phantom",
    *,
    num_labelled: int = 10,
    num_unlabelled: int = 0,
    shape: tuple[int, int, int] = (160, 200, 180),
    spacing_mm: tuple[float, float, float] | None = (1.0, 1.0, 1.0),
    orientation: str = "RAS",
    modality: Modality = "MR",
    highest: float = 900.0,
    class_voxels: dict[str, int] | None = None,
    absent_classes: tuple[str, ...] = (),
    margin: int = 0,
    domains: tuple[str, ...] = (),
    patients: tuple[str, ...] = (),
    channels: tuple[str, ...] = ("image",),
) -> Fingerprint:
    """Return the fingerprint of equal cases; domains and patients go round them."""
    class_voxels = class_voxels or {"organ": 100_000, "tumour": 20_000}
    intensity = Intensity(
        mean=100.0, std=20.0, median=90.0, min=-900.0, max=highest, p00_5=-50.0, p99_5=250.0
    )
    present = {
        key: ClassFacts(voxels=n, size_voxels=(9, 9, 9), size_mm=None) for key, n in class_voxels.items()
    }
    upper = (shape[0] - margin, shape[1] - margin, shape[2] - margin)
    cases = tuple(
        CaseFacts(
            id=f"case{number:03d}",
            shape=shape,
            spacing_mm=spacing_mm,
            orientation=orientation,
            nonzero=(intensity,) * len(channels),
            foreground=(intensity,) * len(channels) if number < num_labelled else None,
            nonzero_box=((margin,) * 3, upper),
            body_box=((margin,) * 3, upper),
            classes=present if number < num_labelled else {},
            is_labelled=number < num_labelled,
            domain=domains[number % len(domains)] if domains else None,
            patient=patients[number % len(patients)] if patients else None,
        )
        for number in range(num_labelled + num_unlabelled)
    )
    names = (*class_voxels, *absent_classes)
    return Fingerprint(
        name=name,
        channels=channels,
        modalities=(modality,) * len(channels),
        modalities_from=("channel name",) * len(channels),  # type: ignore[arg-type]
        labels=LabelSpace(names=names, values=tuple((number + 1,) for number in range(len(names)))),
        file_ending=".nii.gz",
        is_picture=spacing_mm is None,
        intensity_region="foreground" if num_labelled else "nonzero",
        intensities=(intensity,) * len(channels),
        median_spacing_mm=spacing_mm,
        median_shape=shape,
        domains=tuple(sorted(set(domains))),
        notes=(),
        cases=cases,
    )


@pytest.fixture
def fingerprint() -> Callable[..., Fingerprint]:
    return make_fingerprint


class Toy(Method):
    """A method of one convolution, whose needs a test can change."""

    needs = Needs()
    Config = Config

    @classmethod
    def propose(cls, situation: Situation) -> Proposal:
        return Proposal(fits=True, score=50, reason="a toy")

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.plan = plan
        self.conv = nn.Conv3d(plan.num_channels, 8, 3, padding=1)

    def phases(self) -> Sequence[Phase]:
        role = next(
            role for role in ("labelled", "atlas", "support", "unlabelled") if self.plan.roles(0).get(role)
        )
        batch, steps = self.plan.training.batch_size, self.plan.training.iterations
        return (
            Phase(
                name="only",
                num_steps=steps,
                batch_size=batch,
                sample=Labelled(self.plan.patch_size, role=role),
            ),
        )

    def optimizers(self, phase: str) -> dict[str, torch.optim.Optimizer]:
        return {"main": torch.optim.Adam(self.parameters(), lr=self.plan.training.lr)}

    def training_step(self, batch: Batch, update: Update, at: Progress) -> dict[str, torch.Tensor]:
        loss = self.conv(batch["image"]).relu().sum()
        update.minimise(loss)
        return {"loss": loss.detach()}

    def predictor(self, case: Case, support: Sequence[Case]) -> Predictor:
        return lambda patches, corners, flipped=(): self.conv(patches)


def make_method(**needs: Any) -> type[Toy]:
    """Return a toy method with these `Needs`."""

    class Changed(Toy):
        pass

    Changed.needs = Needs(**needs)
    return Changed


@pytest.fixture
def toy() -> Callable[..., type[Toy]]:
    return make_method


@pytest.fixture
def plan(toy: Callable[..., type[Toy]]) -> Callable[..., Plan]:
    """Plan a toy method, which is measured at once, unless another is given."""

    def make(*facts: Any, method: Any = None, memory: float = 8, **overrides: Any) -> Plan:
        chosen = toy(pyramid=True) if method is None else method
        return decide(facts, "supervised", chosen, Overrides(**overrides), round(memory * 2**30))[0]

    return make
