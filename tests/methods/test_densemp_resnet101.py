"""The encoder of the paper, at full width on the CPU: every phase steps, in the memory that was foretold."""

import json
import math
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["contrastive", "superpixel", "finetune"])
def test_resnet101_learns_in_every_phase_within_the_memory_foretold(phase, tmp_path):
    command = [sys.executable, "-m", "tests.methods.resnet101_step", phase, str(tmp_path / "run")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    found = json.loads(done.stdout.splitlines()[-1])
    values = [value for losses in found["losses"] if losses for value in losses.values()]
    assert values and all(map(math.isfinite, values))
    # A processor keeps workspaces of its own, and saving a checkpoint takes room.
    assert 0.6 < found["predicted"] / found["resident"] < 1.2
