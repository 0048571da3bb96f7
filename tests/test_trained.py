"""Which trained model is meant where the command line does not say."""

import os
from pathlib import Path

import pytest

from medplan.commands.trained import Trained
from medplan.errors import UsageError
from medplan.train.run_folder import Record, Status, write_record
from medplan.workspace import Workspace


def make_run(root: Path, name: str, *, age: int, status: Status | None) -> Path:
    fold = root / "results" / "Phantom" / "supervised" / name / "fold_0"
    fold.mkdir(parents=True)
    (fold / "best.pt").touch()
    os.utime(fold / "best.pt", (10**9 - age, 10**9 - age))
    if status is not None:
        write_record(fold, Record(status=status, fold=0, step=1, iterations=2, seconds=0.0))
    return fold.parent


def test_the_last_finished_run_goes_before_one_that_is_being_trained(tmp_path: Path) -> None:
    space = Workspace.open(tmp_path)
    with pytest.raises(UsageError, match="Nothing is trained there yet"):
        Trained().find(space)
    running = make_run(space.root, "running", age=0, status="running")
    assert Trained().find(space) == running
    make_run(space.root, "old", age=20, status="finished")
    installed = make_run(space.root, "installed", age=10, status=None)
    assert Trained().find(space) == installed
    assert Trained(run="running").find(space) == running
    odd = make_run(space.root, "at 3 mm [thin]", age=30, status="finished")
    assert Trained(run="at 3 mm [thin]").find(space) == odd
