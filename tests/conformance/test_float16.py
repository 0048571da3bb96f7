"""Every method learns in float16 what it learns in float32."""

import json
from pathlib import Path
from typing import Literal

import pytest
import torch

from medplan import checkpoint, registry
from medplan.runtime import Runtime
from tests.conformance.tiny import run, tiny_plan


def first_losses(folder: Path, name: str, precision: Literal["fp16", "fp32"]) -> dict[str, float]:
    plan = tiny_plan(name, iterations=3, checkpoint_every=10**6)
    run(plan, folder, runtime=Runtime(device=torch.device("cpu"), precision=precision))
    weights = checkpoint.load(folder / "last.pt")["weights"].values()
    assert all(tensor.isfinite().all() for tensor in weights if tensor.is_floating_point())
    found: dict[str, float] = json.loads((folder / "log.jsonl").read_text().splitlines()[0])["losses"]
    return found


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name == "imedsam" else name for name in registry.names()],
)
def test_a_step_in_float16_has_the_losses_of_float32_and_moves_weights_to_finite_places(
    name: str, tmp_path: Path
) -> None:
    exact = first_losses(tmp_path / "fp32", name, "fp32")
    assert first_losses(tmp_path / "fp16", name, "fp16") == pytest.approx(exact, rel=0.05, abs=0.01)
