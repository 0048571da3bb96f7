"""Transfer on the command line: the user names the run to start from, and nothing else has to fit by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from medplan import checkpoint
from medplan.cli import main
from medplan.plan.schema import Plan
from medplan.records import read_json
from tests.conftest import make_raw_dataset

NETWORK = [
    "config.channels=[4,8,8,8]",
    "config.depths=[1,1,1]",
    "config.head_size=4",
    "config.modality_tokens=2",
]
TRAIN = ["--iters", "2", "--set", "training.validate_every=2", "--device", "cpu", "--workers", "0"]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which one dataset was learnt, and a second one lies."""
    space = tmp_path_factory.mktemp("space")
    for name in ("Dataset001_First", "Dataset002_Second"):
        make_raw_dataset(space / "raw_data" / name, num_labelled=6, num_test=0)
    settings = [word for setting in NETWORK for word in ("--set", setting)]
    plan = ["plan", "-d", "First", "-m", "hermes", "--spacing", "3", "--patch-size", "16", "16", "16"]
    assert main([*plan, *settings, "--workspace", str(space)]) == 0
    assert main(["train", "-d", "First", "-m", "hermes", *TRAIN, "--workspace", str(space)]) == 0
    return space


def test_a_run_to_start_from_is_all_that_a_user_names(space: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = space / "results" / "First" / "hermes" / "default"
    arguments = ["train", "-d", "Second", "--from", str(first), *TRAIN]
    assert main([*arguments, "--workspace", str(space)]) == 0
    plans = [read_json(Plan, space / "plans" / name / "hermes.json") for name in ("First", "Second")]
    assert plans[0].grid == plans[1].grid and plans[0].patch_size == plans[1].patch_size
    assert plans[1].config["channels"] == [4, 8, 8, 8]
    assert "another grid" not in caplog.text


def test_tasks_begin_as_those_of_the_same_class_elsewhere(space: Path) -> None:
    from medplan.methods.hermes import Hermes

    first = space / "results" / "First" / "hermes" / "default"
    arguments = ["plan", "-d", "Second", "-m", "hermes", "--from", str(first), "--workspace", str(space)]
    assert main(arguments) == 0
    method = Hermes(read_json(Plan, space / "plans" / "Second" / "hermes.json"))
    state = checkpoint.load(first / "fold_0" / "last.pt")
    method.start_from(state["weights"], checkpoint.plan_of(state, path=first), where="the first run")
    key = "average.fusions/0/pool/tasks"
    assert method.state_dict()[key].equal(state["weights"][key])


def test_what_the_run_has_not_learnt_is_new(space: Path) -> None:
    first = space / "results" / "First" / "hermes" / "default"
    arguments = ["plan", "-d", "First", "Second", "--name", "Both", "-m", "hermes", "--from", str(first)]
    assert main([*arguments, "--set", "config.transfer=incremental", "--workspace", str(space)]) == 0
    plan = read_json(Plan, space / "plans" / "Both" / "hermes.json")
    assert plan.config["new_datasets"] == ["Second"]
    assert plan.config["tasks"][-2:] == ["Second/liver", "Second/spleen"]


def test_a_plan_that_is_not_alike_is_pointed_out(space: Path, caplog: pytest.LogCaptureFixture) -> None:
    from medplan.methods.hermes import Hermes

    path = space / "results" / "First" / "hermes" / "default" / "fold_0" / "last.pt"
    state = checkpoint.load(path)
    plan = checkpoint.plan_of(state, path=path)
    coarse = replace(plan.grid, spacing_mm=(6.0, 6.0, 6.0))
    Hermes(replace(plan, grid=coarse)).start_from(state["weights"], plan, where="the first run")
    assert "plan with --from" in caplog.text


def test_a_dataset_to_pretrain_on_answers_to_all_its_names(
    space: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "-d", "First", "-m", "bijros", "--spacing", "3", "--workspace", str(space)]
    assert main([*arguments, "--pretrain-on", "2"]) == 0
    planned = read_json(Plan, space / "plans" / "First" / "bijros.json")
    assert [each.name for each in planned.datasets] == ["First", "Second"]
    assert planned.datasets[1].is_for_pretraining
    assert main([*arguments, "--pretrain-on", "dataset001_first"]) == 2
    assert "'First' is learnt itself" in capsys.readouterr().err
