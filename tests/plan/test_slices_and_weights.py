"""Slices of one fixed size, and the published weights that a method names."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from medplan.data.images import Geometry, Image
from medplan.data.labels import LabelSpace
from medplan.method import Proposal, Situation
from medplan.plan.overrides import Overrides
from medplan.plan.planner import decide, situation
from medplan.plan.schema import DatasetPlan, Grid, Normalisation
from medplan.preprocess.prepare import prepare

Make = Callable[..., Any]


@pytest.fixture
def squeezing(toy: Make) -> Any:
    class Squeezing(toy(dims=(2,), grid="squeezed", encoders=("big", "small"))):  # type: ignore[misc]
        @classmethod
        def propose(cls, situation: Situation) -> Proposal:
            published = {"big": "big.pth"}
            return Proposal(
                fits=True, score=1, reason="a toy", patch_size=(1, 64, 64), encoder_weights=published
            )

    return Squeezing


def plan(facts: Any, method: Any, **overrides: Any) -> Any:
    return decide([facts], "supervised", method, Overrides(**overrides), 8 * 2**30)[0]


def test_slices_are_squeezed_in_plane_only(fingerprint: Make, squeezing: Any) -> None:
    volumes = plan(fingerprint(shape=(20, 200, 180)), squeezing)
    assert volumes.grid.shape == (0, 64, 64)
    assert volumes.patch_size == (1, 64, 64)
    chosen = plan(fingerprint(shape=(20, 200, 180)), squeezing, patch_size=(1, 32, 32))
    assert chosen.grid.shape == (0, 32, 32) and chosen.patch_size == (1, 32, 32)
    pictures = plan(fingerprint(shape=(1, 500, 600), spacing_mm=None, modality="RGB"), squeezing)
    assert pictures.grid.shape == pictures.patch_size == (1, 64, 64)


def test_a_published_file_is_planned_unless_the_user_says_otherwise(
    fingerprint: Make, squeezing: Any
) -> None:
    facts = fingerprint(shape=(1, 500, 600), spacing_mm=None)
    assert plan(facts, squeezing).encoder_weights == "big.pth"
    assert plan(facts, squeezing, encoder="small").encoder_weights is None
    assert plan(facts, squeezing, encoder_weights="none").encoder_weights is None
    assert plan(facts, squeezing, encoder_weights="own.pth").encoder_weights == "own.pth"


def test_the_situation_tells_no_weights_from_none_named(fingerprint: Make) -> None:
    silent, asked = situation([fingerprint()]), situation([fingerprint()], Overrides(encoder_weights="none"))
    assert (silent.encoder_weights, silent.without_weights) == (None, False)
    assert (asked.encoder_weights, asked.without_weights) == (None, True)


def test_a_grid_with_a_free_axis_keeps_its_length() -> None:
    dataset = DatasetPlan(
        name="Phantom",
        channels=("T1",),
        modalities=("MR",),
        labels=LabelSpace(names=("liver",), values=((1,),)),
        normalisations=(Normalisation(scheme="none"),),
        folds=({},),
    )
    image = Image(array=np.ones((1, 5, 12, 10)), geometry=Geometry(shape=(5, 12, 10), spacing_mm=(3, 1, 1)))
    case, restoration = prepare(image, dataset, Grid(spacing_mm=None, shape=(0, 8, 16), crop="none"))
    assert case.shape == restoration.shape == (5, 8, 16)
