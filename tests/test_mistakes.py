"""What users get wrong, and the sentence that they get back."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from medplan.cli import main
from medplan.commands.data import extract
from medplan.commands.planning import have_changed
from medplan.data.inputs import find_inputs
from medplan.workspace import Workspace
from tests.conftest import make_phantom, make_raw_dataset, write_nifti


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--workspace", "x", "info"], "The verb comes first: medplan VERB --workspace"),
        (
            ["train", "-d", "X", "--gpu-memory", "1"],
            "a flag of 'medplan plan' and 'medplan plan_and_preprocess'",
        ),
        (
            ["train", "-d", "27", "3d_fullres", "0"],
            "What is '3d_fullres 0'? 'medplan train' takes flags only",
        ),
        (
            ["plan", "-d", "X", "--batch-size", "0"],
            "--batch-size: should be a whole number, 1 or more, found '0'",
        ),
        (["train", "-d", "X", "--iters", "-1"], "should be a whole number, 0 or more"),
        (["predict", "-i", "x", "-o", "y"], "There is no trained model in "),
        (["predict", "-i", "x", "-o", "y", "-d", "A", "--run", "b"], "Nothing is trained there yet"),
        (["plan", "-d", "X"], "'medplan convert scans' takes any folder"),
    ],
)
def test_one_sentence_says_what_to_do(
    arguments: list[str],
    hint: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_raw_dataset(tmp_path / "raw_data" / "A", num_labelled=1)
    assert hint in said(arguments, capsys)


def test_a_mistake_that_is_wrong_for_every_method_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_raw_dataset(tmp_path / "raw_data" / "A", num_labelled=3)
    error = said(["plan", "-d", "A", "--spacing", "0", "--workspace", str(tmp_path)], capsys)
    assert error.count("should be one positive number") == 1 and ".." not in error.splitlines()[-1]


def test_an_unknown_method_is_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_raw_dataset(tmp_path / "raw_data" / "A", num_labelled=3)
    assert "did you mean 'supervised'" in said(
        ["train", "-d", "A", "-m", "supervized", "--workspace", str(tmp_path)], capsys
    )
    assert not (tmp_path / "plans").exists()


def test_training_without_any_plan_makes_them_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_raw_dataset(tmp_path / "raw_data" / "A", num_labelled=3)
    (tmp_path / "plans" / "A").mkdir(parents=True)
    asked = ["train", "-d", "A", "--iters", "1", "--batch-size", "1", "--set", "no.such=1"]
    assert "no" in said([*asked, "--workspace", str(tmp_path)], capsys)
    assert (tmp_path / "plans" / "A" / "supervised.json").is_file()


def test_every_method_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 6 and all(len(line) > 40 for line in lines if line)
    assert "See the module" not in "".join(lines)


def test_training_says_that_labels_came_after_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = make_raw_dataset(tmp_path / "raw_data" / "A", num_labelled=3, num_unlabelled=1)
    space = ["-d", "A", "-m", "supervised", "--workspace", str(tmp_path)]
    small = ["--spacing", "3", "--gpu-memory", "1", "--iters", "1", "--patch-size", "16", "16", "16"]
    assert main(["plan_and_preprocess", *space, *small]) == 0
    assert main(["train", *space]) == 0
    out = capsys.readouterr().out
    assert "have changed" not in out
    assert "Validation: best: mean Dice 0." in out and "liver" in out
    (raw / "labelsTr" / "case03.nii.gz").write_bytes((raw / "labelsTr" / "case02.nii.gz").read_bytes())
    assert main(["train", *space, "--run", "second"]) == 0
    assert "plan_and_preprocess -d A -m supervised' takes the change in" in capsys.readouterr().out
    assert main(["train", *space, "--lr", "0.5"]) == 2
    assert "--restart" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"background": 0, "kidney": 1, "spleen": 2}},
        {"channel_names": {"0": "CT"}},
        {"domain": {"case00": "A"}},
        {"patient": {"case00": "p1", "case01": "p1"}},
        {"splits": {"paper": {"labelled": ["case00"], "validation": ["case01"]}}},
        {"exclude": ["case00"]},
        {"description": "free text"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_planned_from_is_measured_again_when_the_dataset_changes(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    raw = make_raw_dataset(tmp_path / "raw_data" / "A", num_labelled=2)
    space = Workspace.open(tmp_path)
    extract(space, "A", workers=1)
    assert not have_changed(space, "A")
    path = raw / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert have_changed(space, "A") == ("description" not in change)


def test_without_arguments_there_is_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "medplan plan_and_preprocess" in said([], capsys)


def test_the_variable_of_nnunet_is_mentioned_where_it_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    asked = ["plan", "-d", "X", "--workspace", str(tmp_path)]
    assert "$nnUNet_raw is not set" in said(asked, capsys)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    assert "is not set" not in said(asked, capsys)


def test_inputs_that_are_passed_over_or_look_like_channels_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    phantom = make_phantom(0)
    for name in ("a_0000.nii.gz", "a_0001.nii.gz", "b.mha"):
        write_nifti(tmp_path / name, phantom.image, phantom.spacing_mm)
    (tmp_path / "a.png").touch()
    with caplog.at_level(logging.WARNING):
        found = find_inputs(tmp_path, 1, ".nii.gz")
    assert [case.id for case in found] == ["a", "a_0001", "b"]
    assert "the 3 volumes are taken, the 1 pictures (a.png) are not" in caplog.text
    assert "'a_0001' is taken for a scan of its own" in caplog.text
