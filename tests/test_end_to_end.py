"""The commands of the README, one after the other, on phantoms."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medplan.cli import main
from medplan.data.images import read_label
from medplan.plan.schema import Plan
from tests.conftest import make_raw_dataset

TINY = ["--patch-size", "16", "16", "16", "--set", "pyramid.features=[4,8,8]"]
TRAIN = ["--iters", "3", "--set", "training.validate_every=3", "--device", "cpu", "--workers", "0"]


def medplan(*arguments: str | Path) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which a method was planned, preprocessed and trained."""
    space = tmp_path_factory.mktemp("space")
    make_raw_dataset(space / "raw_data" / "Dataset007_Phantom", num_labelled=6, num_test=2)
    medplan(
        "plan_and_preprocess",
        "-d",
        "Phantom",
        "-m",
        "supervised",
        "--spacing",
        "3",
        *TINY,
        "--workspace",
        space,
    )
    medplan("train", "-d", "7", "-m", "supervised", *TRAIN, "--workspace", space)
    return space


def test_every_stage_leaves_its_file(space: Path) -> None:
    run = space / "results" / "Phantom" / "supervised" / "default" / "fold_0"
    files = ["best.pt", "last.pt", "plan.json", "run.json", "log.jsonl", "progress.png"]
    assert all((run / name).is_file() for name in files)
    assert (run / "validation" / "best" / "summary.json").is_file()
    assert (space / "plans" / "Phantom" / "fingerprint.json").is_file()


@pytest.mark.slow
def test_two_processes_train_together_and_one_evaluates(space: Path) -> None:
    # Without the two dashes torchrun takes --run for an option of its own.
    ranks = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "--",
        "medplan",
    ]
    command = ["train", "-d", "7", "-m", "supervised", *TRAIN, "--run", "ranks", "--workspace", str(space)]
    done = subprocess.run([*ranks, *command], capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert said.count("validation Dice") == 1 and said.count("Validation: ") == 1
    assert (space / "results/Phantom/supervised/ranks/fold_0/validation/best/summary.json").is_file()


def test_predicting_evaluating_and_reporting_follow_without_further_words(
    space: Path, tmp_path: Path
) -> None:
    raw, out = space / "raw_data" / "Dataset007_Phantom", tmp_path / "out"
    medplan("predict", "-i", raw / "imagesTs", "-o", out, "--device", "cpu", "--workspace", space)
    medplan("evaluate", "-i", out, "-r", raw / "labelsTs", "--workspace", space)
    medplan("report", "-i", out, "-o", tmp_path / "r.html", "--workspace", space)
    medplan("report", "-o", tmp_path / "validation.html", "--workspace", space)
    summary = json.loads((out / "summary.json").read_text())
    assert {Path(case["prediction_file"]).name for case in summary["metric_per_case"]} == {
        "case06.nii.gz",
        "case07.nii.gz",
    }
    page = (tmp_path / "r.html").read_text()
    assert "case06" in page and page.count('<img src="data:image/jpeg') == 2


@pytest.mark.parametrize("values", [[2, 1], [2]])
def test_groups_of_labels_are_evaluated_as_groups(space: Path, tmp_path: Path, values: list[int]) -> None:
    (tmp_path / "groups.json").write_text(json.dumps({"organs": values}))
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "raw_data").symlink_to(space / "raw_data")
    where = ["--workspace", tmp_path / "space"]
    groups = ["--label-groups", tmp_path / "groups.json"]
    medplan("plan", "-d", "Phantom", "-m", "supervised", "--spacing", "3", *groups, *TINY, *where)
    medplan("train", "-d", "Phantom", "-m", "supervised", *TRAIN, *where)
    raw, out = space / "raw_data" / "Dataset007_Phantom", tmp_path / "out"
    medplan("predict", "-i", raw / "imagesTs", "-o", out, "--device", "cpu", *where)
    medplan("evaluate", "-i", out, "-r", raw / "labelsTs", *where)
    (organs,) = json.loads((out / "summary.json").read_text())["mean"].values()
    truths = [read_label(path)[0] for path in (raw / "labelsTs").glob("*.nii.gz")]
    assert organs["n_ref"] == np.mean([np.isin(truth, values).sum() for truth in truths])


def test_an_exported_model_predicts_the_same_elsewhere(space: Path, tmp_path: Path) -> None:
    image = space / "raw_data" / "Dataset007_Phantom" / "imagesTs" / "case06_0000.nii.gz"
    medplan("export", "-o", tmp_path / "model.zip", "--workspace", space)
    (tmp_path / "other").mkdir()
    medplan("install", tmp_path / "model.zip", "--workspace", tmp_path / "other")
    places = [
        ["--model", tmp_path / "model.zip"],
        ["--workspace", tmp_path / "other"],
        ["--workspace", space],
    ]
    for number, place in enumerate(places):
        medplan("predict", "-i", image, "-o", tmp_path / f"out{number}", "--device", "cpu", *place)
    first, *others = [(tmp_path / f"out{number}" / "case06.nii.gz").read_bytes() for number in range(3)]
    assert others == [first, first]


def test_training_again_changes_nothing(space: Path) -> None:
    run = space / "results" / "Phantom" / "supervised" / "default" / "fold_0"
    before = (run / "last.pt").read_bytes()
    medplan("train", "-d", "Phantom", "-m", "supervised", *TRAIN, "--workspace", space)
    assert (run / "last.pt").read_bytes() == before


def test_no_iterations_make_a_model_of_the_weights_that_training_begins_with(space: Path) -> None:
    train = ["train", "-d", "Phantom", "-m", "supervised", "--run", "untrained", "--iters", "0"]
    medplan(*train, "--device", "cpu", "--workers", "0", "--workspace", space)
    run = space / "results" / "Phantom" / "supervised" / "untrained" / "fold_0"
    assert (run / "best.pt").is_file() and json.loads((run / "run.json").read_text())["step"] == 0


def test_minutes_are_timed_once_and_kept_when_it_goes_on(
    space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lasting(minutes: float, plan: Plan, *_: object, **__: object) -> Plan:
        return replace(plan, training=replace(plan.training, iterations=next(lengths)))

    lengths = iter([4])
    monkeypatch.setattr("medplan.train.budget.lasting", lasting)
    train = ["train", "-d", "Phantom", "-m", "supervised", "--run", "timed", "--minutes", "5"]
    for _ in range(2):
        medplan(*train, "--device", "cpu", "--workers", "0", "--workspace", space)
    run = space / "results" / "Phantom" / "supervised" / "timed" / "fold_0"
    assert json.loads((run / "run.json").read_text())["step"] == 4


def test_a_training_that_the_system_would_kill_is_refused(
    space: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medplan.machine.host_memory", lambda: 10**8)
    train = ["train", "-d", "Phantom", "-m", "supervised", "--run", "large", "--device", "cpu"]
    assert main([str(word) for word in (*train, "--workspace", space)]) == 2
    assert "but 0.1 GB of this machine's memory are free" in capsys.readouterr().err
    assert not (space / "results" / "Phantom" / "supervised" / "large").exists()
    # The plan fits, but not with so large a batch.
    monkeypatch.setattr("medplan.machine.host_memory", lambda: 2**30)
    train += ["--batch-size", "9999"]
    assert main([str(word) for word in (*train, "--workspace", space)]) == 2
    assert "but 1.0 GB of this machine's memory are free" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["train", "-d", "Phantom", "-m", "supervised", "--fold", "9"], "no fold 9"),
        (["train", "-d", "Phantom", "--minutes", "5", "--iters", "9"], "without --iters"),
        (["train", "-d", "Phantom", "-m", "supervized"], "did you mean 'supervised'"),
        (
            ["train", "-d", "Phantom", "-m", "supervised", "--set", "training.lrr=1"],
            "did you mean 'training.lr'",
        ),
        (["train", "-d", "Phantom", "-m", "supervised", "--patch-size", "16"], "--patch-size"),
        (["train", "-d", "Phantom", "-m", "supervised", "--patch-size", "16", "16", "15"], "multiple of"),
        (["predict", "-i", "none.nii.gz", "-o", "out"], "none.nii.gz"),
        (["predict", "-i", ".", "-o", "out", "--run", "other"], "There are:"),
        (["predict", "-i", ".", "-o", "out", "--model", "nothing.zip"], "nothing.zip"),
        (["evaluate", "-i", ".", "-r", "."], "name the dataset with -d"),
    ],
)
def test_mistakes_are_met_with_one_sentence(
    space: Path, arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--workspace", str(space)]) == 2
    error = capsys.readouterr().err
    assert hint in error
    assert "Traceback" not in error
