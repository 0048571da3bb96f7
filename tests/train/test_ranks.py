import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from medplan import checkpoint
from medplan.errors import CheckpointError, MethodError
from medplan.method import Method
from medplan.records import read_json
from medplan.runtime import Runtime
from medplan.train.loop import train
from medplan.train.run_folder import Record
from tests.train.toy import Steady, build, toy_plan, toy_store


class Counting(Steady):
    """Keeps a buffer that each rank would fill differently, as running statistics do."""

    def __init__(self, plan: Any) -> None:
        super().__init__(plan)
        self.register_buffer("running", torch.zeros(1))
        self.seen: list[float] = []

    def training_step(self, batch, update, at):  # type: ignore[no-untyped-def]
        self.seen.append(float(self.running))
        self.running.add_(batch["image"].mean())
        return super().training_step(batch, update, at)


def work(rank: int, folder: Path, kind: type[Method], options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    runtime = Runtime(device=torch.device("cpu"), rank=rank, world=2)
    plan = toy_plan(**options)
    method = build(plan, kind)
    if rank == 1:
        with torch.no_grad():
            next(method.parameters()).add_(1.0)
        if kind is Counting:
            (folder / "run").mkdir(exist_ok=True)
    train(method, plan, toy_store(plan), folder / "run", fold=0, runtime=runtime, workers=0)  # type: ignore[arg-type]
    torch.save(method.state_dict(), folder / f"{rank}.pt")
    runtime.close()


def two_ranks(folder: Path, kind: type[Method], **options: Any) -> list[dict[str, torch.Tensor]]:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank, folder, kind, options)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_ranks_end_alike_and_as_one_rank_would_whatever_they_started_from(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path, Steady, batch_size=4)
    plan = toy_plan(batch_size=4)
    alone = build(plan, Steady)
    store: Any = toy_store(plan)
    train(alone, plan, store, tmp_path / "alone", fold=0, runtime=Runtime(device=torch.device("cpu")))
    for name, tensor in alone.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], tensor, atol=1e-6), name


def test_buffers_are_those_of_the_first_rank_everywhere(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path, Counting, batch_size=4)
    assert torch.equal(first["running"], second["running"])
    saved = checkpoint.load(tmp_path / "run" / "last.pt")["weights"]
    assert torch.equal(saved["running"], first["running"])


def test_ranks_draw_apart_within_a_step(tmp_path: Path) -> None:
    class Drawing(Steady):
        def training_step(self, batch, update, at):  # type: ignore[no-untyped-def]
            name = f"{at.phase}{at.step}{dist.get_rank()}.txt"
            (tmp_path / name).write_text(str(torch.rand(1).item()))
            return super().training_step(batch, update, at)

    two_ranks(tmp_path, Drawing, batch_size=4)
    drawn = [path.read_text() for path in tmp_path.glob("*.txt")]
    assert len(set(drawn)) == len(drawn) == 12


def test_a_loss_that_is_not_finite_on_one_rank_is_refused_on_all(tmp_path: Path) -> None:
    class Broken(Steady):
        def training_step(self, batch, update, at):  # type: ignore[no-untyped-def]
            loss = sum(parameter.square().sum() for parameter in self.parameters())
            with pytest.raises(MethodError, match="not finite"):
                name = "main" if at.phase == "first" else "head"
                update.minimise(loss + (torch.inf if dist.get_rank() == 1 else 0.0), name)
            (tmp_path / f"{at.phase}{at.step}{dist.get_rank()}.txt").touch()
            return {"loss": loss.detach()}

    two_ranks(tmp_path, Broken, batch_size=4)
    assert len(list(tmp_path.glob("*.txt"))) == 12


@pytest.mark.parametrize("step", [1, 3])
def test_a_stop_file_ends_all_ranks_at_the_same_step(tmp_path: Path, step: int) -> None:
    class Stopping(Steady):
        def training_step(self, batch, update, at):  # type: ignore[no-untyped-def]
            if at.step + 1 + 2 * (at.phase == "second") == step:
                (tmp_path / "run" / "STOP").touch()
            return super().training_step(batch, update, at)

    first, second = two_ranks(tmp_path, Stopping, batch_size=4)
    # A rank may touch the file just before or just after the first one looks for it.
    assert read_json(Record, tmp_path / "run" / "run.json").step in (step, step + 1)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_processes_that_stand_at_different_steps_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runtime, "gather", lambda self, value: [value, 4])
    plan, runtime = toy_plan(), Runtime(device=torch.device("cpu"))
    with pytest.raises(CheckpointError, match="not all processes see this file"):
        train(build(plan, Steady), plan, toy_store(plan), tmp_path, fold=0, runtime=runtime)  # type: ignore[arg-type]
