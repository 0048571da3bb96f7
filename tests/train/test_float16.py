"""Training in float16, whose overflowing steps are left out, goes on and ends as any other does."""

import json
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from medplan import checkpoint
from medplan.method import Batch, Progress, Update
from medplan.runtime import Runtime
from medplan.train.loop import train
from tests.train.toy import Overflow, Steady, build, toy_plan, toy_store


class Overflowing(Steady):
    """Overflows in its last step but one, on the second rank where there are two; can be told to stop."""

    folder: Path
    stops_after = -1

    def training_step(self, batch: Batch, update: Update, at: Progress) -> dict[str, torch.Tensor]:
        if at.phase == "first" or at.step != at.num_steps - 2:
            logged = super().training_step(batch, update, at)
        else:
            logits = self.logits(batch["image"])
            if not dist.is_initialized() or dist.get_rank() == 1:
                logits = Overflow.apply(logits)
            before = self.head.weight.detach().clone()
            update.minimise(F.cross_entropy(logits, batch["label"].long()), "head")
            assert torch.equal(before, self.head.weight)
            logged = {"loss": torch.tensor(torch.nan), "before": torch.tensor(1.0)}
        if at.phase == "second" and at.step == self.stops_after:
            (self.folder / "STOP").touch()
        return logged


def go(folder: Path, *, rank: int = 0, world: int = 1) -> None:
    runtime = Runtime(device=torch.device("cpu"), rank=rank, world=world, precision="fp16")
    plan, Overflowing.folder = toy_plan(checkpoint_every=4), folder
    train(build(plan, Overflowing), plan, toy_store(plan), folder, fold=0, runtime=runtime, workers=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [1, 2])
def test_a_run_that_is_stopped_around_an_overflow_goes_on_to_the_same_bytes(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(tmp_path / "whole")
    # The step behind the one that is left out makes two updates.
    saved = checkpoint.load(tmp_path / "whole" / "last.pt")["training"]
    assert saved["scale"] == {"value": 2.0**15, "lasted": 2}
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [set(line["losses"]) for line in lines][-2:] == [{"before"}, {"before", "loss"}]
    monkeypatch.setattr(Overflowing, "stops_after", step)
    go(tmp_path / "parts")
    monkeypatch.undo()
    go(tmp_path / "parts")
    for name in ("last.pt", "best.pt"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def one_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    go(folder / "run", rank=rank, world=2)
    dist.destroy_process_group()


def test_an_overflow_on_one_rank_is_left_out_by_all(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=one_rank, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0, 0]
    assert checkpoint.load(tmp_path / "run" / "last.pt")["training"]["scale"]["value"] == 2.0**15
