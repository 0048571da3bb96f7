from typing import Any

import pytest

from medplan.data.labels import LabelSpace
from medplan.errors import PlanError
from medplan.methods.supervised import Config
from medplan.plan.overrides import apply_settings, parse_setting
from medplan.plan.schema import DatasetPlan, Grid, Normalisation, Plan, Training

PLAN = Plan(
    name="Phantom",
    method="supervised",
    dims=3,
    datasets=(
        DatasetPlan(
            name="Phantom",
            channels=("image",),
            modalities=("MR",),
            labels=LabelSpace(names=("organ",), values=((1,),)),
            normalisations=(Normalisation(scheme="zscore"),),
            folds=({"labelled": ("a",)},),
        ),
    ),
    grid=Grid(spacing_mm=(1.5, 1.5, 1.5)),
    patch_size=(32, 32, 32),
    encoder="unet",
    training=Training(iterations=10, batch_size=2, lr=0.01),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training.lr=0.005", ("training.lr", 0.005)),
        ("a=1e-3", ("a", 0.001)),
        ("a=3", ("a", 3)),
        ("a=true", ("a", True)),
        ("a=None", ("a", None)),
        ("a=1,2,3", ("a", (1, 2, 3))),
        ("a=[1, 2]", ("a", [1, 2])),
        ("a=body", ("a", "body")),
        ("a=x=y", ("a", "x=y")),
    ],
)
def test_settings_are_read_as_numbers_lists_or_texts(text: str, expected: tuple[str, Any]) -> None:
    assert parse_setting(text) == expected


def test_a_setting_without_equals_sign_is_refused() -> None:
    with pytest.raises(PlanError, match="key=value"):
        parse_setting("training.lr")


def test_settings_reach_every_depth_and_are_given_as_reason() -> None:
    changed = apply_settings(
        PLAN,
        {"training.lr": 0.5, "grid.crop": "none", "datasets.0.share": 0.25, "config.momentum": 0.9},
        Config,
    )
    assert changed.training.lr == 0.5
    assert changed.grid.crop == "none"
    assert changed.datasets[0].share == 0.25
    assert changed.config == {"momentum": 0.9}
    assert "--set" in changed.reasons["grid.crop"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.ler", 1.0, "did you mean 'training.lr'"),
        ("trainig.lr", 1.0, "did you mean"),
        ("config.momentun", 1.0, "did you mean 'config.momentum'"),
        ("momentum", 1.0, "did you mean 'config.momentum'"),
        ("lr", 1.0, "did you mean 'training.lr'"),
        ("training.lr", "fast", "'training.lr' should be a number"),
        ("grid.crop", "bodi", "did you mean 'body'"),
        ("patch_size", (1, 2), "a list of 3"),
        ("training.iterations", -1, "at least 0"),
        ("datasets.3.share", 1.0, "number from 0 to 0"),
        ("pyramid.features", (1,), "is not there"),
    ],
)
def test_a_wrong_key_or_type_is_refused_with_its_name(key: str, value: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        apply_settings(PLAN, {key: value}, Config)
