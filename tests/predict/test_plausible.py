"""What is said of inputs that look unlike the training cases."""

from dataclasses import replace

import numpy as np
import pytest

from medplan.data.images import Geometry, Image
from medplan.predict.plausible import warn_if_unlike_training
from tests.conformance.tiny import tiny_plan


@pytest.mark.parametrize(
    ("spacing", "usual", "is_odd"),
    [
        ((0.6, 0.6, 0.6), (0.6, 0.7, 0.7), False),
        ((0.6, 0.7, 5.0), (5.0, 0.7, 0.6), False),  # the same slices, stored along another axis
        ((0.06, 0.06, 0.06), (0.6, 0.6, 0.6), True),
        ((0.06, 0.06, 0.06), None, False),
    ],
)
def test_a_spacing_is_compared_with_that_of_the_training_cases(
    spacing: tuple[float, float, float],
    usual: tuple[float, float, float] | None,
    is_odd: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    image = Image(
        array=np.zeros((1, 4, 4, 4), np.float32), geometry=Geometry(shape=(4, 4, 4), spacing_mm=spacing)
    )
    dataset = replace(tiny_plan("supervised").datasets[0], median_spacing_mm=usual)
    warn_if_unlike_training(image, dataset, name="scan")
    assert ("is the header right?" in caplog.text) == is_odd


@pytest.mark.parametrize(("value", "said"), [(0.0, "is 0 everywhere"), ((0.0, 0.5), ""), ((0, 9e4), "units")])
def test_intensities_are_compared_with_those_of_the_training_cases(
    value: float | tuple[float, float], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    array = np.resize(np.float32(value), (1, 4, 4, 4))
    image = Image(array=array, geometry=Geometry(shape=(4, 4, 4), spacing_mm=(1.0, 1.0, 1.0)))
    dataset = tiny_plan("supervised").datasets[0]
    scheme = replace(dataset.normalisations[0], low=-1.0, high=1.0)
    if said == "units":
        scheme = replace(scheme, low=1.0, high=2.0)
    warn_if_unlike_training(image, replace(dataset, normalisations=(scheme,)), name="scan")
    assert said in caplog.text and bool(caplog.text) == bool(said)
