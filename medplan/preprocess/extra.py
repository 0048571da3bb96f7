"""Volumes besides image and label that a method can ask for (`DatasetPlan.extra`), made from a prepared case.

They lie beside it and are made once. A name here is a name in the plan; what follows it there are the numbers
that the volume is made with.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from medplan.errors import PlanError, did_you_mean
from medplan.preprocess.superpixels import Superpixels, superpixels
from medplan.records import decode
from medplan.samples.cases import Case

__all__ = ["make"]

NAMES = ("superpixels",)


def make(name: str, case: Case, numbers: Mapping[str, Any]) -> npt.NDArray[np.integer]:
    """Return the volume (Z, Y, X) of that name.

    Raises: PlanError for a name or a number that is not known.
    """
    if name not in NAMES:
        raise PlanError(
            f"there is no extra volume '{name}'{did_you_mean(name, NAMES)}; known: {', '.join(NAMES)}."
        )
    return superpixels(case, decode(Superpixels, dict(numbers), where=f"plan 'extra.{name}'"))
