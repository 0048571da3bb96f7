from collections.abc import Callable

import numpy as np
import pytest

from medplan.data.images import Geometry, Image
from medplan.data.labels import LabelSpace
from medplan.plan.schema import DatasetPlan, Normalisation


def dataset_plan(
    name="Phantom", *, labels=None, channels=1, scheme="zscore", modality="MR", folds=({},)
) -> DatasetPlan:
    return DatasetPlan(
        name=name,
        channels=tuple(f"T{i}" for i in range(channels)),
        modalities=(modality,) * channels,
        labels=labels or LabelSpace(names=("liver", "spleen"), values=((1,), (2,))),
        normalisations=(Normalisation(scheme=scheme),) * channels,
        folds=folds,
    )


def picture_of(array, spacing_mm=(1.0, 1.0, 1.0), **geometry) -> Image:
    return Image(array=array, geometry=Geometry(shape=array.shape[1:], spacing_mm=spacing_mm, **geometry))


@pytest.fixture
def make_plan() -> Callable[..., DatasetPlan]:
    return dataset_plan


@pytest.fixture
def make_image() -> Callable[..., Image]:
    return picture_of


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    return lambda shape, seed=0: np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
