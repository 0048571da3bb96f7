"""The memory that a training step may take, and the patch and the batch that fill it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from medplan.errors import PlanError
from medplan.plan import summary as read
from medplan.plan.overrides import Overrides, voxels_of
from medplan.plan.patches import fit, shaped, shrinking
from medplan.plan.schema import Plan

if TYPE_CHECKING:
    from medplan.method import Needs, Proposal
    from medplan.plan.fingerprint import Fingerprint
    from medplan.plan.memory import Footprint

__all__ = ["fill_memory", "memory_target"]

DEFAULT_BYTES = 24 * 2**30
SMALL_BYTES = 4 * 2**30
BASE_FEATURES, SMALL_BASE_FEATURES = 32, 16

Voxels = tuple[int, int, int]


def memory_target(overrides: Overrides, gpu_memory_bytes: int | None) -> tuple[int, str]:
    """Return the bytes that a training step may take, and where they come from.

    Args:
        gpu_memory_bytes: what the GPU has; None without one.

    Raises: PlanError if the user gives none.
    """
    if overrides.gpu_memory is not None:
        if overrides.gpu_memory <= 0:
            raise PlanError(f"--gpu-memory: should be positive, found {overrides.gpu_memory}.")
        target = round(overrides.gpu_memory * 2**30)
        return target, f"target {overrides.gpu_memory:g} GB set by the user (--gpu-memory)"
    if gpu_memory_bytes is None:
        return DEFAULT_BYTES, "target 24 GB, the default where no GPU is seen"
    there = f"{gpu_memory_bytes / 2**30:.3g} GB"
    if gpu_memory_bytes <= DEFAULT_BYTES:
        return gpu_memory_bytes, f"target {there}, what the GPU has"
    return DEFAULT_BYTES, f"target 24 GB of {there}: more slows every step (--gpu-memory)"


def fill_memory(
    draft: Plan,
    needs: "Needs",
    proposal: "Proposal",
    facts: Sequence["Fingerprint"],
    overrides: Overrides,
    measure: Callable[[Plan], "Footprint"],
    *,
    target_bytes: int,
    source: str,
) -> tuple[Plan, "Footprint"]:
    """Return the draft with a patch, a batch and the network for them, and what a training step takes.

    Args:
        draft: a plan whose grid is decided.
        measure: gives the memory of a plan's training step.
        target_bytes, source: from `memory_target`.

    Raises: PlanError if nothing fits, or the user's patch is none.
    """
    reasons = dict(draft.reasons)
    base_features = None
    if needs.pyramid:
        small = target_bytes < SMALL_BYTES
        base_features = SMALL_BASE_FEATURES if small else BASE_FEATURES
        reasons["pyramid"] = (
            f"halved down to 4 voxels, thick axes later; {base_features} features at full resolution"
            + (", half of the usual because the memory target is under 4 GB" if small else "")
        )
    shapes = read.grid_shapes(facts, draft.grid)
    multiple = max(1, needs.patch_multiple)
    given = _given_patch(draft, needs, proposal, overrides, shapes)
    if given is not None:
        plans: tuple[Plan, ...] = (shaped(draft, given[0], base_features=base_features, multiple=multiple),)
    else:
        # A dataset of many small images should not decide what the others are seen through.
        median = max((read.median_shape(read.grid_shapes([each], draft.grid)) for each in facts), key=prod)
        plans = tuple(shrinking(draft, median, base_features=base_features, multiple=multiple))
    batch = overrides.value("training.batch_size", "batch_size")
    batch_size = batch[0] if batch is not None else proposal.batch_size
    result = fit(
        plans,
        measure,
        target_bytes=target_bytes,
        dataset_voxels=sum(map(prod, shapes)),
        batch_size=batch_size,
        fixed_patch=given is not None,
    )
    reasons["patch_size"] = given[1] if given is not None else result.patch_reason
    if given is not None and result.plan.patch_size[1:] != given[0][1:]:
        reasons["patch_size"] += f"; rounded up from {given[0]} to what the network can halve"
    why = batch[1] if batch is not None else proposal.reasons.get("batch_size", "proposed by the method")
    reasons["training.batch_size"] = why if batch_size is not None else result.batch_reason
    reasons["predicted_gpu_bytes"] = (
        f"measured on tensors without values: {result.footprint.total / 2**30:.1f} GB; {source}"
        + ("; MORE than the target" if result.footprint.total > target_bytes else "")
    )
    return replace(result.plan, reasons=reasons), result.footprint


def _given_patch(
    draft: Plan, needs: "Needs", proposal: "Proposal", overrides: Overrides, shapes: Sequence[Voxels]
) -> tuple[Voxels, str] | None:
    """Return the patch and the reason where it does not depend on the memory, else None."""
    chosen = overrides.value("patch_size", "patch_size")
    if chosen is not None and chosen[0] is not None:
        return voxels_of(chosen[0], dims=draft.dims), chosen[1]
    if draft.grid.shape is not None:
        z, y, x = (max(1, side) for side in draft.grid.shape)
        return (z, y, x), "the shape that cases are squeezed to"
    if proposal.patch_size is not None:
        return proposal.patch_size, proposal.reasons.get("patch_size", "proposed by the method")
    if needs.whole_image:
        z, y, x = (max(shape[axis] for shape in shapes) for axis in range(3))
        return (z, y, x), "the largest image: the method sees images whole"
    return None
