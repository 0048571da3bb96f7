"""Train ResNet-101 for two steps of each phase and print predicted and resident bytes, as JSON.

A process of its own, since the most memory that a process ever held is asked for.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from medplan.plan.memory import CONTEXT_BYTES, measure
from medplan.registry import find
from medplan.runtime import Runtime
from medplan.train.loop import train
from tests.conformance.tiny import build, tiny_plan, tiny_store
from tests.train.toy import MemoryStore


def main() -> None:
    phase, folder = sys.argv[1], Path(sys.argv[2])
    steps = {"contrastive": (2, 1, 0), "superpixel": (0, 2, 0), "finetune": (0, 0, 2)}[phase]
    plan = tiny_plan("densemp", iterations=sum(steps), batch_size=2, lr=1e-4)
    config = {**plan.config, "shares": steps, "contrastive_batch": 8, "contrastive_side": 128, "hidden": None}
    plan = replace(plan, encoder="resnet101", patch_size=(1, 128, 128), config=config)
    runtime = Runtime.choose("cpu")
    store: MemoryStore = tiny_store(plan)
    before = runtime.peak_bytes()
    method = build(plan)
    train(method, plan, store, folder, fold=0, runtime=runtime, workers=0)
    found = {
        "predicted": measure(find("densemp"), plan).total - CONTEXT_BYTES,
        "resident": runtime.peak_bytes() - before,
        "losses": [
            json.loads(line).get("losses") for line in (folder / "log.jsonl").read_text().splitlines()
        ],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
