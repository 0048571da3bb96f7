"""Laws of the courses of the learning rate."""

import math

import pytest

from medplan.learning.schedules import WarmupThenPoly, decay_at


def test_the_rate_rises_to_the_base_rate_and_falls_to_zero():
    schedule = WarmupThenPoly(0.1)
    assert schedule(0.0) == pytest.approx(math.exp(-10))
    assert schedule(0.0999) < 1 and schedule(0.05) == pytest.approx(math.exp(-5))
    assert schedule(0.1) == pytest.approx(0.9**0.9)
    assert schedule(0.999) < 0.01
    assert WarmupThenPoly(0.0)(0.0) == 1.0


def test_the_average_reaches_back_over_a_fiftieth_of_a_short_training_at_most():
    assert decay_at(0.99, 100_000, 80_000) == 0.99
    assert decay_at(0.99, 400, 500) == pytest.approx(0.9)
    assert decay_at(0.99, 0, 80_000) == 0.0 and decay_at(0.99, 9, 80_000) == pytest.approx(0.9)
    assert decay_at(0.99, 5, 10) == 0.0
