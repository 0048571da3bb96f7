import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from medplan import checkpoint
from medplan.errors import CheckpointError, MethodError, UsageError
from medplan.method import Method
from medplan.plan.schema import Plan
from medplan.records import read_json, write_json
from medplan.runtime import Runtime
from medplan.train import run as run_module
from medplan.train.loop import train
from medplan.train.run_folder import Record, hold
from medplan.train.validate import make_validator
from tests.train.toy import Steady, Toy, build, toy_plan, toy_store

CPU = Runtime(device=torch.device("cpu"))


def go(folder: Path, plan: Plan, *, kind: type[Method] = Toy, **options: object) -> Method:
    method = build(plan, kind)
    train(method, plan, toy_store(plan), folder, fold=0, runtime=CPU, **options)  # type: ignore[arg-type]
    return method


class StopAfter(Toy):
    """Asks to stop after some steps, as a user would by hand."""

    folder: Path
    steps: int

    def training_step(self, batch, update, at):  # type: ignore[no-untyped-def]
        done = at.step + 1 + (2 if at.phase == "second" else 0)
        if done == self.steps:
            (self.folder / "STOP").touch()
        return super().training_step(batch, update, at)


@pytest.mark.parametrize("step", range(1, 6))
def test_resuming_at_any_step_ends_in_the_same_bytes(tmp_path: Path, step: int) -> None:
    plan = toy_plan(checkpoint_every=4)
    go(tmp_path / "whole", plan)
    StopAfter.folder, StopAfter.steps = tmp_path / "parts", step
    go(tmp_path / "parts", plan, kind=StopAfter)
    record = read_json(Record, tmp_path / "parts" / "run.json")
    assert (record.status, record.step) == ("stopped", step)
    go(tmp_path / "parts", plan)
    for name in ("last.pt", "best.pt"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert read_json(Record, tmp_path / "parts" / "run.json").status == "finished"
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_the_seconds_of_all_starts_are_added_up(tmp_path: Path) -> None:
    StopAfter.folder, StopAfter.steps = tmp_path, 3
    go(tmp_path, toy_plan(), kind=StopAfter)
    record = read_json(Record, tmp_path / "run.json")
    write_json(replace(record, seconds=1000.0), tmp_path / "run.json")
    go(tmp_path, toy_plan())
    assert 1000 < read_json(Record, tmp_path / "run.json").seconds < 1300


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_worker_processes_draw_what_the_trainer_itself_would_draw(tmp_path: Path) -> None:
    alone = go(tmp_path / "alone", toy_plan())
    helped = go(tmp_path / "helped", toy_plan(), workers=2)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, helped.state_dict()[name]), name


def test_a_finished_run_is_prolonged_by_more_iterations_and_by_nothing_else(tmp_path: Path) -> None:
    go(tmp_path, toy_plan())
    before = (tmp_path / "last.pt").read_bytes()
    go(tmp_path, toy_plan())
    assert (tmp_path / "last.pt").read_bytes() == before
    go(tmp_path, toy_plan(iterations=12))
    state = checkpoint.load(tmp_path / "last.pt")
    # The last phase grows from 4 to 8 steps; the first, which is over, is not repeated.
    assert state["step"] == 10
    with pytest.raises(CheckpointError, match=r"training\.lr.*was 0\.05, is 0\.2"):
        go(tmp_path, toy_plan(iterations=12, lr=0.2))


def test_the_weights_that_a_phase_ends_with_are_kept(tmp_path: Path) -> None:
    go(tmp_path, toy_plan())
    kept, last = (checkpoint.load(tmp_path / name)["weights"] for name in ("first.pt", "last.pt"))
    assert not (tmp_path / "second.pt").exists() and kept.keys() == last.keys()
    assert not torch.equal(kept["head.weight"], last["head.weight"])


def test_a_run_of_another_fold_is_refused(tmp_path: Path) -> None:
    plan = toy_plan()
    go(tmp_path, plan)
    with pytest.raises(CheckpointError, match="trained on fold 0, not 1"):
        train(build(plan), plan, toy_store(plan), tmp_path, fold=1, runtime=CPU)


def test_starting_over_forgets_the_former_run(tmp_path: Path) -> None:
    go(tmp_path, toy_plan())
    before = (tmp_path / "last.pt").read_bytes()
    go(tmp_path, toy_plan(lr=0.2), resume=False)
    assert (tmp_path / "last.pt").read_bytes() != before
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 6


def test_validation_picks_the_best_weights_and_patience_ends_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module.Run, "_plot", lambda self: None)
    scores = iter([0.3, 0.7, 0.6, 0.5, 0.9])
    seen = []

    def validate(method: Method) -> dict[str, float]:
        assert not method.training and not torch.is_grad_enabled()
        seen.append({name: tensor.clone() for name, tensor in method.state_dict().items()})
        return {"score": next(scores), "liver": 0.1}

    plan = toy_plan(iterations=30, validate_every=3, patience=2)
    go(tmp_path, plan, validate=validate)
    best = checkpoint.load(tmp_path / "best.pt")
    # Validations at 12, 15, 18 and 21; the first phase (10 steps) has none.
    assert (best["score"], best["step"], len(seen)) == (0.7, 15, 4)
    assert all(torch.equal(best["weights"][name], tensor) for name, tensor in seen[1].items())
    record = read_json(Record, tmp_path / "run.json")
    assert (record.status, record.step, record.best_score) == ("finished", 21, 0.7)
    go(tmp_path, plan, validate=validate)
    assert len(seen) == 4, "a run that ended early is not continued by the same plan"


def test_validation_uses_the_predictor_and_draws_the_progress(tmp_path: Path) -> None:
    plan = toy_plan(validate_every=3)
    store: Any = toy_store(plan)
    go(tmp_path, plan, validate=make_validator(plan, store, runtime=CPU))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    validated = [line for line in lines if "validation" in line]
    assert [line["step"] for line in validated] == [3, 6]
    assert all(set(line["validation"]) == {"score", "liver", "spleen"} for line in validated)
    assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")


def test_a_parameter_that_is_in_no_optimiser_never_moves(tmp_path: Path) -> None:
    plan = toy_plan()
    first = build(plan).state_dict()
    trained = go(tmp_path, plan).state_dict()
    moved = {name for name, tensor in trained.items() if not torch.equal(tensor, first[name])}
    assert moved == {"body.weight", "body.bias", "head.weight", "head.bias", "average"}


def test_every_step_draws_anew_and_a_resumed_one_draws_the_same(tmp_path: Path) -> None:
    class Drawing(Steady):
        draws: ClassVar[list[float]] = []

        def training_step(self, batch, update, at):  # type: ignore[no-untyped-def]
            self.draws.append(float(torch.rand(1)))
            return super().training_step(batch, update, at)

    go(tmp_path, toy_plan(), kind=Drawing)
    assert len(set(Drawing.draws)) == 6
    go(tmp_path, toy_plan(), kind=Drawing, resume=False)
    assert Drawing.draws[:6] == Drawing.draws[6:]


def test_what_is_not_trained_in_a_phase_needs_no_gradient(tmp_path: Path) -> None:
    class Looking(Steady):
        def training_step(self, batch, update, at):  # type: ignore[no-untyped-def]
            assert not self.unused.weight.requires_grad
            assert self.head.weight.requires_grad == (at.phase == "second")
            return super().training_step(batch, update, at)

    go(tmp_path, toy_plan(), kind=Looking)


def test_gradients_that_are_not_finite_stop_before_the_step_and_name_the_cases(tmp_path: Path) -> None:
    class Poisoned(Steady):
        def logits(self, image):  # type: ignore[no-untyped-def]
            return super().logits(image) * (float("nan") if self.average.any() else 1.0)

    with pytest.raises(
        MethodError, match=r"'head' are not finite in phase 'second', step 1; cases: Phantom/"
    ):
        go(tmp_path, toy_plan(checkpoint_every=1), kind=Poisoned)
    state = checkpoint.load(tmp_path / "last.pt")
    assert state["step"] == 3 and all(tensor.isfinite().all() for tensor in state["weights"].values())
    assert read_json(Record, tmp_path / "run.json").status == "failed"


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with hold(tmp_path), multiprocessing.get_context("fork").Pool(1) as others:
        with pytest.raises(UsageError, match=f"process {os.getpid()}"):
            others.apply(_hold, [tmp_path])
    with hold(tmp_path):
        pass


def _hold(folder: Path) -> None:
    with hold(folder):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_ends_with_the_signals_status(
    tmp_path: Path, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    class Signalled(Steady):
        def training_step(self, batch, update, at):  # type: ignore[no-untyped-def]
            if at.phase == "second":
                os.kill(os.getpid(), number)
            return super().training_step(batch, update, at)

    with pytest.raises(SystemExit) as caught:
        go(tmp_path, toy_plan(), kind=Signalled)
    assert caught.value.code == 128 + number
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 3
    assert "same command goes on" in caplog.text


def test_a_disk_without_room_for_the_checkpoints_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(4 * tensor.numel() for tensor in build(toy_plan(), Toy).state_dict().values())
    monkeypatch.setattr(run_module, "free_disk", lambda folder: 6 * weights)
    with pytest.raises(CheckpointError, match="0 MiB are free on this disk"):
        go(tmp_path, toy_plan())
    assert not (tmp_path / "last.pt").exists()


def test_unknown_trackers_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tensorbord.*did you mean 'tensorboard'"):
        go(tmp_path, toy_plan(), track=("tensorbord",))


def test_a_missing_tracker_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="pip install wandb"):
        go(tmp_path, toy_plan(), track=("wandb",))


@pytest.mark.slow
def test_kill_at_any_moment_and_the_same_command_again_gives_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from pathlib import Path; from tests.train.test_train_loop import go, toy_plan\n"
        "go(Path(sys.argv[1]), toy_plan(iterations=150, checkpoint_every=7))"
    )
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[2]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, cwd=root)
    for seconds in (2.0, 2.3, 2.6):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], cwd=root)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, cwd=root)
    assert (tmp_path / "whole" / "last.pt").read_bytes() == (tmp_path / "killed" / "last.pt").read_bytes()


def test_a_step_that_does_not_fit_says_what_to_make_smaller(tmp_path: Path) -> None:
    class Large(Toy):
        def training_step(self, batch, update, at):  # type: ignore[no-untyped-def]
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MethodError, match=r"phase 'first' with 2 samples .* --batch-size or --patch-size"):
        go(tmp_path, toy_plan(), kind=Large)
