"""Laws of the courses of the learning rate."""

import math

import pytest

from medplan.learning.schedules import WarmupThenPoly


def test_the_rate_rises_to_the_base_rate_and_falls_to_zero():
    schedule = WarmupThenPoly(0.1)
    assert schedule(0.0) == pytest.approx(math.exp(-10))
    assert schedule(0.0999) < 1 and schedule(0.05) == pytest.approx(math.exp(-5))
    assert schedule(0.1) == pytest.approx(0.9**0.9)
    assert schedule(0.999) < 0.01
    assert WarmupThenPoly(0.0)(0.0) == 1.0
