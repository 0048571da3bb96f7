"""The encoder of the paper, at full width on the CPU: every phase steps, in the memory that was foretold."""

import json
from dataclasses import replace

import pytest
import torch

from medplan.plan.memory import CONTEXT_BYTES, measure
from medplan.registry import find
from medplan.runtime import Runtime
from tests.conformance.tiny import run, tiny_plan


@pytest.mark.slow
@pytest.mark.parametrize("shares", [(2, 1, 0), (0, 0, 2)])
def test_resnet101_learns_in_every_phase_within_the_memory_foretold(shares, tmp_path):
    plan = tiny_plan("densemp", iterations=sum(shares), batch_size=2, lr=1e-4)
    config = {
        **plan.config,
        "shares": shares,
        "contrastive_batch": 8,
        "contrastive_side": 128,
        "hidden": None,
    }
    plan = replace(plan, encoder="resnet101", patch_size=(1, 128, 128), config=config)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        run(plan, tmp_path, runtime=Runtime(device=torch.device("cpu"), precision="bf16"))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert sum("losses" in line for line in lines) == sum(shares)
    taken = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            taken += event.nbytes()
            most = max(most, taken)
    foretold = measure(find("densemp"), plan).total - CONTEXT_BYTES
    assert 1.0 < foretold / most < 1.4
