"""The command line: flags and parameters agree, and mistakes are met with one helpful sentence."""

import argparse
import dataclasses
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medplan.cli import build_parser, main
from medplan.commands.trained import Trained
from medplan.plan.overrides import Overrides
from medplan.predict.options import Options
from tests.conftest import make_raw_dataset


def verbs() -> dict[str, argparse.ArgumentParser]:
    actions = build_parser()._actions
    return dict(next(a for a in actions if isinstance(a, argparse._SubParsersAction)).choices)


def command(name: str) -> object:
    run = verbs()[name].get_default("run_verb")
    module = inspect.getclosurevars(run).nonlocals["module"]
    return getattr(importlib.import_module(f"medplan.commands.{module}"), name)


@pytest.mark.parametrize("name", sorted(verbs()))
def test_flags_are_the_parameters_of_the_verb(name: str) -> None:
    flags = {action.dest for action in verbs()[name]._actions} - {"help", "verbose"}
    parameters = set(inspect.signature(command(name)).parameters)  # type: ignore[arg-type]
    for record_name, record in (("overrides", Overrides), ("trained", Trained), ("options", Options)):
        if record_name in parameters:
            parameters.remove(record_name)
            flags -= {field.name for field in dataclasses.fields(record)}
    assert flags == parameters


def test_every_override_has_a_flag() -> None:
    flags = {action.dest for action in verbs()["plan"]._actions}
    assert {field.name for field in dataclasses.fields(Overrides)} <= flags


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["trian"], "did you mean 'train'"),
        (["plan", "-d", "X", "--gpu-memry", "4"], "did you mean '--gpu-memory'"),
        (["train"], "required: -d/--dataset"),
        (["train", "27", "3d_fullres", "0"], "What is '27 3d_fullres 0'? 'medplan train' takes flags only"),
        (["train", "-d", "X", "--c"], "nnU-Net's: the same command goes on"),
        (["predict", "-i", "x", "-o", "y", "--num_parts", "2"], "nnU-Net's: --part 1/4"),
        (["predict", "-i", "x", "-o", "y", "--part", "5/4"], "--part: should be 1/4, 2/4 and so on"),
        (["plan", "-d", "X", "--iters", "many"], "should be a whole number, 0 or more, found 'many'"),
        (
            ["fingerprint", "-d", "X", "--workers", "-1"],
            "--workers: should be a whole number, 0 or more, found '-1'",
        ),
        (["train", "-d", "X", "--set", "training.lr"], "key=value"),
        (["plan", "-d", "NoSuchData"], "no dataset 'NoSuchData'"),
        (["fingerprint", "-d", "X", "--workspace", "no/such/folder"], "is not a folder"),
    ],
)
def test_mistakes_give_one_sentence_and_status_2(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert hint in error
    assert "Traceback" not in error


def test_a_file_in_a_folders_place_gives_one_sentence_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_raw_dataset(tmp_path / "raw_data" / "Phantom", num_labelled=1)
    (tmp_path / "plans").touch()
    assert main(["fingerprint", "-d", "Phantom", "--workspace", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "plans" in error and error.startswith("medplan: error:") and "Traceback" not in error


def test_a_plan_that_is_not_there_comes_with_the_command_that_makes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_raw_dataset(tmp_path / "raw_data" / "Phantom", num_labelled=1)
    arguments = ["preprocess", "-d", "Phantom", "--workspace", str(tmp_path), "-m"]
    assert main([*arguments, "supervised"]) == main([*arguments, "supervisd"]) == 2
    error = capsys.readouterr().err
    assert "medplan plan_and_preprocess -d Phantom -m supervised" in error
    assert "did you mean 'supervised'" in error


def test_planning_notices_cases_that_came_since_the_fingerprint(tmp_path: Path) -> None:
    root = make_raw_dataset(tmp_path / "raw_data" / "Phantom", num_labelled=3)
    plan = ["plan", "-d", "Phantom", "-m", "supervised", "--gpu-memory", "1", "--workspace", str(tmp_path)]
    assert main(plan) == 0
    shutil.copy(root / "imagesTr" / "case00_0000.nii.gz", root / "imagesTr" / "case99_0000.nii.gz")
    assert main(plan) == 0
    made = json.loads((tmp_path / "plans" / "Phantom" / "supervised.json").read_text())
    assert made["datasets"][0]["folds"][0]["unlabelled"] == ["case99"]


def test_a_training_of_another_length_is_validated_as_often() -> None:
    from medplan.commands.training import _with_numbers
    from medplan.plan.schema import Plan
    from medplan.records import read_json

    path = Path(__file__).parents[1] / "plans" / "Hippocampus" / "supervised.json"
    training = _with_numbers(read_json(Plan, path), Overrides(iterations=500)).training
    assert (training.iterations, training.validate_every, training.checkpoint_every) == (500, 100, 100)
    chosen = Overrides(iterations=500, settings={"training.validate_every": 50})
    assert _with_numbers(read_json(Plan, path), chosen).training.validate_every == 50


def test_no_more_cases_are_prepared_at_a_time_than_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_raw_dataset(tmp_path / "raw_data" / "Phantom", num_labelled=3)
    space = ["-d", "Phantom", "-m", "supervised", "--workspace", str(tmp_path)]
    assert main(["plan", *space, "--gpu-memory", "1", "--spacing", "3"]) == 0
    asked: list[int] = []
    monkeypatch.setattr("medplan.preprocess.run.preprocess", lambda *_, workers, **__: asked.append(workers))
    monkeypatch.setattr("medplan.machine.cores", lambda: 8)
    for free in (2**40, 3 * 20 * 28 * 24 * 8, 1, None):
        monkeypatch.setattr("medplan.machine.host_memory", lambda free=free: free)
        assert main(["preprocess", *space]) == 0
    assert main(["preprocess", *space, "--workers", "5"]) == 0
    few = asked.pop(1)
    assert 1 <= few <= 3 and asked == [8, 1, 8, 5]


def test_flags_are_accepted_with_one_dash_and_underscores() -> None:
    from medplan.cli import _canonical

    known = verbs()
    for word, flag in (("-device", "--device"), ("--batch_size=4", "--batch-size=4"), ("-1.5", "-1.5")):
        assert _canonical(word, known["train"], known) == flag


def test_help_starts_nearly_as_fast_as_python() -> None:
    def seconds(*arguments: str) -> float:
        """Return processor time, which another program on the machine does not change."""
        start = os.times()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        end = os.times()
        return end.children_user + end.children_system - start.children_user - start.children_system

    bare = min(seconds("-c", "pass") for _ in range(5))
    ours = min(seconds("-m", "medplan", "--help") for _ in range(5))
    assert ours - bare < 0.15
