"""The largest patch and batch whose training step fits the memory."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from medplan.errors import PlanError
from medplan.plan.schema import Plan
from medplan.plan.topology import make_pyramid, round_up

if TYPE_CHECKING:
    from medplan.plan.memory import Footprint

__all__ = ["Fit", "fit", "shaped", "shrinking"]

SMALLEST_SIDE = 16
LARGEST_VOXELS = {2: 2048**2, 3: 256**3}
SMALLEST_BATCH = {2: 8, 3: 2}
"""A patch shrinks until so many fit; in 2-D, where slices resemble each other, more are needed."""

LARGEST_SHARE = 0.05
"""Of the dataset's voxels in one batch."""

Voxels = tuple[int, int, int]
Measure = Callable[[Plan], "Footprint"]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A plan whose patch and batch fit, and what it takes."""

    plan: Plan
    footprint: "Footprint"
    patch_reason: str
    batch_reason: str


def shaped(plan: Plan, patch_size: Voxels, *, base_features: int | None, multiple: int) -> Plan:
    """Return the plan with that patch, rounded up to what the network can halve, and the pyramid for it.

    Args:
        base_features: channels of the pyramid's first stage; None plans no pyramid.
        multiple: `Needs.patch_multiple`.
    """
    if plan.dims == 2:
        patch_size = (1, *patch_size[1:])
    every: Voxels = (1 if plan.dims == 2 else multiple, multiple, multiple)
    if base_features is None:
        return replace(plan, patch_size=round_up(patch_size, every), pyramid=None)
    while True:
        pyramid = make_pyramid(patch_size, plan.grid.spacing_mm, plan.dims, base_features=base_features)
        steps = pyramid.multiple
        common = (math.lcm(every[0], steps[0]), math.lcm(every[1], steps[1]), math.lcm(every[2], steps[2]))
        rounded = round_up(patch_size, common)
        if rounded == patch_size:
            return replace(plan, patch_size=patch_size, pyramid=pyramid)
        patch_size = rounded


def shrinking(
    plan: Plan, median_shape: Voxels, *, base_features: int | None, multiple: int
) -> Iterator[Plan]:
    """Yield plans with ever smaller patches, the first as large as the median image.

    The patch begins with sides of equal length in mm, no longer than the image's; then the side that covers
    most of the image loses one step at a time, so that the patch keeps the image's proportions.
    """
    start = _clipped(plan, median_shape)
    current = shaped(plan, start, base_features=base_features, multiple=multiple)
    while True:
        yield current
        steps = current.pyramid.multiple if current.pyramid else (multiple,) * 3
        sides = current.patch_size
        axes = (0, 1, 2) if plan.dims == 3 else (1, 2)
        order = sorted(axes, key=lambda axis: sides[axis] / median_shape[axis], reverse=True)
        for axis in order:
            step = max(steps[axis], multiple)
            smaller = tuple(side - step if i == axis else side for i, side in enumerate(sides))
            if smaller[axis] < min(SMALLEST_SIDE, sides[axis]):
                continue
            candidate = shaped(
                plan, (smaller[0], smaller[1], smaller[2]), base_features=base_features, multiple=multiple
            )
            if math.prod(candidate.patch_size) < math.prod(sides):
                current = candidate
                break
        else:
            return


def _clipped(plan: Plan, median_shape: Voxels) -> Voxels:
    """Return the largest box, cubic in mm, inside the median image and the largest number of voxels."""
    axes = (0, 1, 2) if plan.dims == 3 else (1, 2)
    spacing = plan.grid.spacing_mm or (1.0, 1.0, 1.0)
    budget = LARGEST_VOXELS[plan.dims]
    side_mm = (budget * math.prod(spacing[axis] for axis in axes)) ** (1 / len(axes))
    sides = [
        min(median_shape[axis], max(1, round(side_mm / spacing[axis]))) if axis in axes else 1
        for axis in range(3)
    ]
    return sides[0], sides[1], sides[2]


def fit(
    candidates: Iterator[Plan] | tuple[Plan, ...],
    measure: Measure,
    *,
    target_bytes: int,
    dataset_voxels: int,
    batch_size: int | None,
    fixed_patch: bool = False,
) -> Fit:
    """Choose the first candidate, and for it the largest batch, that fits.

    Args:
        candidates: plans with ever smaller patches; a later one takes no more memory than an earlier one.
        measure: gives the memory of a plan's training step.
        dataset_voxels: of all training cases on the grid.
        batch_size: if it is fixed already.
        fixed_patch: there is one candidate, which is taken even if it does not fit.

    Raises: PlanError if even the smallest patch does not fit.
    """
    plans = tuple(candidates)
    dims = plans[0].dims

    @cache
    def take(number: int, batch: int) -> "Footprint":
        return measure(_with_batch(plans[number], batch))

    wanted = [batch_size] if batch_size is not None else sorted({SMALLEST_BATCH[dims], 2}, reverse=True)
    tried = (_first_that_fits(plans, take, batch, target_bytes) for batch in wanted)
    found = 0 if fixed_patch else next((number for number in tried if number is not None), None)
    if found is None:
        least = take(len(plans) - 1, wanted[-1]).total
        raise PlanError(
            f"{plans[0].method}: a training step on the smallest patch {plans[-1].patch_size} takes "
            f"{least / 2**30:.1f} GB, and the target is {target_bytes / 2**30:.1f} GB. Raise --gpu-memory."
        )
    target = f"{target_bytes / 2**30:.3g} GB"
    patch_reason = (
        f"the largest in the image's proportions that fits {target} with {wanted[-1]} or more per batch"
    )
    if found == 0:
        patch_reason = f"the whole median image fits {target}"
    if batch_size is not None:
        batch, batch_reason = batch_size, ""
    else:
        one, two = take(found, 1).total, take(found, 2).total
        room = 1 + max(0, target_bytes - one) // max(1, two - one)
        patches = dataset_voxels / math.prod(plans[found].patch_size)
        batch, batch_reason = _choose_batch(room, patches, target)
        while batch > 2 and (total := take(found, batch).total) > target_bytes:
            # Where samples see each other, memory grows with the square of the batch.
            room = min(batch - 1, int(batch * (target_bytes / total) ** 0.5))
            batch, batch_reason = _choose_batch(room, patches, target)
        if fixed_patch and two > target_bytes:
            batch, batch_reason = 1, f"one at a time; two do not fit {target}"
    return Fit(
        plan=_with_batch(plans[found], batch),
        footprint=take(found, batch),
        patch_reason=patch_reason,
        batch_reason=batch_reason,
    )


def _first_that_fits(
    plans: Sequence[Plan], take: Callable[[int, int], "Footprint"], batch: int, target_bytes: int
) -> int | None:
    """Return the number of the first plan that fits, or None; memory is guessed to grow with the voxels."""
    low, high = -1, len(plans)
    number = 0
    while high - low > 1:
        total = take(number, batch).total
        low, high = (low, number) if total <= target_bytes else (number, high)
        room = math.prod(plans[number].patch_size) * target_bytes / total
        guess = next((n for n, plan in enumerate(plans) if math.prod(plan.patch_size) <= room), len(plans))
        number = min(max(guess, low + 1), high - 1)
    return high if high < len(plans) else None


def _choose_batch(room: int, num_patches: float, target: str) -> tuple[int, str]:
    """Return the batch size and the reason.

    Args:
        room: patches that fit the memory.
        num_patches: patches in the dataset's voxels.
        target: of the memory, in words.
    """
    limit = max(2, round(LARGEST_SHARE * num_patches))
    batch = max(2, min(room, limit))
    if batch == 2:
        why = f"no more fit {target}" if room <= 2 else "more would repeat so small a dataset"
        return batch, f"the smallest batch; {why}"
    if room <= limit:
        return batch, f"as many as fit {target}"
    return batch, "5 % of the dataset's voxels, more would repeat it"


def _with_batch(plan: Plan, batch: int) -> Plan:
    return replace(plan, training=replace(plan.training, batch_size=batch))
