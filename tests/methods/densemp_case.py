"""What the conformance suite should know of DenseMP."""

from dataclasses import replace
from typing import Any

import numpy as np

from medplan.samples.cases import Case

CONFIG: dict[str, Any] = {
    "shares": [1, 1, 4],
    "contrastive_batch": 4,
    "contrastive_side": 32,
    "contrastive_stride": 8,
    "queue_length": 16,
    "key_momentum": 0.9,
    "hidden": 16,
    "manual_share": 1.0,
    "finetune_lr": 3e-3,
    "eval_window": 1,
    # Organs lie anywhere in a phantom: what an outline that is carried over encloses says nothing of them.
    "per_look": 0.0,
}
TRAINING = {"lr": 3e-3}

RANK_TOLERANCE = None
"""Batch normalisation, the queues and the groups of keys see the pictures of their own rank."""

OVERFIT = {"iterations": 400, "lr": 3e-3}
OVERFIT_DICE = 0.4
"""The case is shown by another one, on a grid of 8 x 8 cells for organs of one or two: what can be learnt by
heart is how they look, not where they are."""


def adapt_plan(plan: Any) -> Any:
    return replace(plan, encoder="tiny", patch_size=(1, 64, 64))


def adapt_case(case: Case) -> Case:
    """Cut every slice into squares of 8 pixels, the air excepted."""
    shape = case.shape
    rows, columns = np.mgrid[: shape[1], : shape[2]]
    squares = (rows // 8) * (shape[2] // 8 + 1) + columns // 8 + 1
    volume = np.broadcast_to(squares, shape).astype(np.int16)
    return replace(case, extra={"superpixels": volume})
