"""The example plans of the repository can be trained from."""

from pathlib import Path

import pytest
import torch

from medplan import registry
from medplan.plan.schema import Plan
from medplan.records import read_json

FOLDER = Path(__file__).parents[2] / "plans"
# Named, because whoever works in the repository has plans of their own there.
SUPERVISED = ("ACDC", "CHAOS", "Hippocampus", "Kvasir", "LASeg", "Synapse")
TRACKED = (*((name, "supervised") for name in SUPERVISED), ("OASIS", "bijros"))


@pytest.mark.parametrize(("dataset", "method_name"), TRACKED)
def test_a_tracked_plan_holds_what_its_method_takes(dataset: str, method_name: str) -> None:
    plan = read_json(Plan, FOLDER / dataset / f"{method_name}.json")
    with torch.device("meta"):
        method = registry.find(plan.method)(plan)
    assert sum(phase.num_steps for phase in method.phases()) == plan.training.iterations
