"""When a method should take less memory at the cost of time."""

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from medplan.errors import PlanError
from medplan.plan.schema import Plan

if TYPE_CHECKING:
    from medplan.plan.memory import Footprint

__all__ = ["LARGE_VOXELS", "fill_or_lighten", "squeezed_further"]

LARGE_VOXELS = {2: 512**2, 3: 128**3}
"""Patches of that many voxels see enough around them."""

GAIN = 1.5
"""How much larger the patch should become for the time that it costs."""

LEAST_STEPS = 4
"""The least side that cases are squeezed to, in multiples of what the network needs."""

Filled = tuple[Plan, "Footprint"]


def fill_or_lighten(
    fill: Callable[[Plan], Filled], draft: Plan, lighter: Plan | None, *, target_bytes: int
) -> Filled:
    """Return the draft with patch and batch, or its lighter version where that fits what the draft does not.

    Args:
        fill: chooses patch and batch for a draft, and measures.
        lighter: the draft with `Method.lighter`'s changes; None if there is none.
        target_bytes: of the memory.

    Raises: PlanError if nothing fits.
    """
    heavy: Filled | None = None
    try:
        heavy = fill(draft)
    except PlanError:
        if lighter is None:
            raise
    if heavy is not None:
        fits = heavy[1].total <= target_bytes
        # What cases are squeezed to does not grow.
        is_large = prod(heavy[0].patch_size) >= LARGE_VOXELS[draft.dims] or draft.grid.shape is not None
        if lighter is None or (fits and is_large):
            return heavy
    assert lighter is not None
    plan, footprint = fill(lighter)
    if heavy is None:
        why = "nothing fits without it"
    elif heavy[1].total > target_bytes:
        why = f"without it a step takes {heavy[1].total / 2**30:.1f} GB"
    elif prod(plan.patch_size) >= GAIN * prod(heavy[0].patch_size):
        why = f"without it the patch would be {'x'.join(map(str, heavy[0].patch_size))}"
    else:
        return heavy
    changed = [key for key, value in lighter.config.items() if draft.config.get(key) != value]
    reasons = {f"config.{key}": f"to spare memory: {why}" for key in changed}
    return replace(plan, reasons={**plan.reasons, **reasons}), footprint


def squeezed_further(draft: Plan, *, share: float, multiple: int, why: str) -> Plan | None:
    """Return the draft with cases squeezed to about that share of its voxels, or None if none can be spared.

    Args:
        share: in (0, 1).
        multiple: of which every side is one.
        why: is added to the reason of the shape.
    """
    shape, least = draft.grid.shape, LEAST_STEPS * multiple
    if shape is None:
        return None
    z, y, x = (min(side, max(least, int(side * share ** (1 / 3)) // multiple * multiple)) for side in shape)
    if (z, y, x) == shape:
        return None
    reasons = {**draft.reasons, "grid.shape": f"{draft.reasons['grid.shape']}; {why}"}
    return replace(draft, grid=replace(draft.grid, shape=(z, y, x)), reasons=reasons)
