"""I-MedSAM made small for the tests that every method takes."""

from dataclasses import replace
from typing import Any

CONFIG = {
    "coarse_widths": (16, 12),
    "fine_widths": (12, 12),
    "head_width": 8,
    "num_features": 6,
    "points": 0,
    "epochs": 6,
    "open_epochs": 2,
    "ramp_epochs": 3,
    "whole_share": 0.5,
}
MAY_REST = ("network.prompt_encoder.", "network.encoder.vit.blocks.", "network.mask_decoder.")
"""Biases of keys get no gradient, and points and masks are never prompted with."""
RANK_TOLERANCE = None
"""Batch normalisation of the decoder: the points of a batch learn from each other."""
OVERFIT = {"lr": 3e-3}


def adapt_plan(plan: Any) -> Any:
    return replace(plan, encoder="tiny", patch_size=(1, 32, 32))
