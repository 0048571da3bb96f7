"""Courses of the learning rate beyond `medplan.method.poly`."""

import math
from dataclasses import dataclass

__all__ = ["WarmupThenPoly"]


@dataclass(frozen=True)
class WarmupThenPoly:
    """Rises exponentially from e^-10 to 1 within `warmup`, times (1 - fraction)^0.9 after it."""

    warmup: float

    def __call__(self, fraction: float) -> float:
        if fraction < self.warmup:
            return math.exp(10 * (fraction / self.warmup - 1))
        return float((1 - fraction) ** 0.9)
