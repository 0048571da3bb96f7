"""What trackers are told, with stand-ins for their packages: nothing leaves the machine."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from medplan.train.log import RunLog, open_trackers

LINE = {"step": 7, "phase": "train", "losses": {"loss": 0.5}, "lr": {"main": 0.01}, "seconds": 0.2}
VALUES = {"losses/loss": 0.5, "lr/main": 0.01, "seconds": 0.2}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls that the stand-ins received."""
    calls: list[Any] = []
    mlflow, wandb, board = (ModuleType(name) for name in ("mlflow", "wandb", "torch.utils.tensorboard"))
    mlflow.start_run = lambda **options: calls.append(("start", options))  # type: ignore[attr-defined]
    mlflow.log_metrics = lambda values, step: calls.append((values, step))  # type: ignore[attr-defined]
    mlflow.end_run = lambda: calls.append("end")  # type: ignore[attr-defined]

    def init(**options: Any) -> Any:
        calls.append(("start", options))
        return SimpleNamespace(
            log=lambda values, step: calls.append((values, step)), finish=lambda: calls.append("end")
        )

    class SummaryWriter:
        def __init__(self, folder: str, **options: Any) -> None:
            calls.append(("start", {"dir": folder}))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append(({name: value}, step))

        def close(self) -> None:
            calls.append("end")

    wandb.init = init  # type: ignore[attr-defined]
    board.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    for module in (mlflow, wandb, board):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def log_a_line(name: str, folder: Path) -> None:
    log = RunLog(folder / "log.jsonl", trackers=open_trackers([name], folder))
    log.write(LINE)
    log.close()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_line_of_the_log_is_one_set_of_values(name: str, told: list[Any], tmp_path: Path) -> None:
    log_a_line(name, tmp_path)
    (_, options), *written, end = told
    assert written == [(VALUES, 7)] and end == "end"
    assert tmp_path.name in (options.get("run_name"), options.get("name"))


def test_tensorboard_gets_a_curve_per_value(told: list[Any], tmp_path: Path) -> None:
    log_a_line("tensorboard", tmp_path)
    (_, options), *written, end = told
    assert {key: value for values, _ in written for key, value in values.items()} == VALUES
    assert {step for _, step in written} == {7} and end == "end"
    assert options["dir"] == str(tmp_path / "tensorboard")
