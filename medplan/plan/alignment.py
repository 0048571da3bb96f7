"""Whether cases are brought into the space of the atlas before anything else."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medplan.errors import PlanError
from medplan.plan.overrides import Overrides
from medplan.plan.schema import DatasetPlan

if TYPE_CHECKING:
    from medplan.method import Needs
    from medplan.plan.fingerprint import Fingerprint

__all__ = ["choose_alignment"]

MASKED_SHARE = 0.75
CLOSE_SHARE = 0.05
"""Centres of masked heads that differ by less of the image's side are aligned already."""


def choose_alignment(
    needs: "Needs", facts: Sequence["Fingerprint"], datasets: Sequence[DatasetPlan], overrides: Overrides
) -> tuple[str | None, str]:
    """Return the id of the case that all others are aligned to, or None, and the reason.

    Methods that want aligned cases get an affine alignment to the atlas of the first fold, unless all images
    have one shape and spacing and hold one masked organ at one place.

    Raises: PlanError if an alignment is asked for where there is no atlas or no spacing.
    """
    if overrides.align is False:
        return None, "set by the user (--no-align)"
    if not needs.aligned and not overrides.align:
        return None, "the method takes cases as they lie"
    atlas = next((fold["atlas"][0] for fold in datasets[0].folds if fold.get("atlas")), None)
    if atlas is None or any(case.spacing_mm is None for each in facts for case in each.cases):
        if overrides.align:
            raise PlanError("--align: needs an atlas case and a spacing of every image.")
        return None, "there is no atlas or no spacing to align with"
    if any(fold.get("atlas", (atlas,)) != (atlas,) for fold in datasets[0].folds):
        return None, "folds have different atlases"
    if overrides.align:
        return atlas, "set by the user (--align)"
    if _lie_alike(facts):
        return None, "the images have one shape, and their masks one place: they are aligned already"
    return atlas, f"images differ in shape or place; each is aligned affinely to the atlas {atlas}"


def _lie_alike(facts: Sequence["Fingerprint"]) -> bool:
    cases = [case for each in facts for case in each.cases]
    if len({(case.shape, case.spacing_mm, case.orientation) for case in cases}) > 1:
        return False
    boxes = np.array([case.nonzero_box for case in cases], dtype=float)
    sides, shape = boxes[:, 1] - boxes[:, 0], np.array(cases[0].shape, dtype=float)
    is_masked = (sides.prod(axis=1) / shape.prod() < MASKED_SHARE).all()
    centres = boxes.mean(axis=1) / shape
    return bool(is_masked and (np.ptp(centres, axis=0) < CLOSE_SHARE).all())
