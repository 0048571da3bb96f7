"""Courses of the learning rate beyond `medplan.method.poly`, and of the decay of averaged weights."""

import math
from dataclasses import dataclass

from medplan.method import poly

__all__ = ["StepDecay", "WarmupThenPoly", "cosine", "decay_at", "falling"]


@dataclass(frozen=True)
class WarmupThenPoly:
    """Rises exponentially from e^-10 to 1 within `warmup`, and is (1 - fraction)^0.9 after it.

    Source: the released code of Hermes (arXiv:2306.02416).
    """

    warmup: float

    def __call__(self, fraction: float) -> float:
        if fraction < self.warmup:
            return math.exp(10 * (fraction / self.warmup - 1))
        return poly(fraction)


@dataclass(frozen=True)
class StepDecay:
    """Falls by 5 % `times` times in the course of a phase, at equal intervals."""

    times: int

    def __call__(self, fraction: float) -> float:
        return float(0.95 ** math.floor(self.times * fraction))


def cosine(fraction: float) -> float:
    """Return the factor of the learning rate: half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * fraction))


def decay_at(decay: float, step: int, num_steps: int) -> float:
    """Return the decay of a moving average at a step: lower at first, and throughout a short training.

    At first so that the average forgets the random start. In a short training because an average over more
    than a fiftieth of it would lag behind a network that still changes fast.
    """
    return min(decay, 1 - 1 / (step + 1), max(0.0, 1 - 50 / num_steps))


def falling(fraction: float) -> float:
    """Return the factor of the learning rate, which falls linearly from 1 to 0.001."""
    return 1.0 - 0.999 * fraction
