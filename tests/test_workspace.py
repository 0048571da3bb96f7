"""The workspace finds datasets by any of their names."""

from pathlib import Path

import pytest

from medplan.errors import UsageError
from medplan.workspace import Workspace


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    for name in ("Dataset027_ACDC", "OASIS", "Task04_Hippocampus"):
        (tmp_path / "raw_data" / name).mkdir(parents=True)
    return Workspace.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("OASIS", "OASIS"),
        ("oasis", "OASIS"),
        ("27", "Dataset027_ACDC"),
        ("027", "Dataset027_ACDC"),
        ("ACDC", "Dataset027_ACDC"),
        ("Dataset027_ACDC", "Dataset027_ACDC"),
        ("Hippocampus", "Task04_Hippocampus"),
    ],
)
def test_a_dataset_answers_to_all_its_names(space: Workspace, name: str, folder: str) -> None:
    assert space.raw_folder(name).name == folder


def test_results_are_filed_under_the_short_name(space: Workspace) -> None:
    assert space.dataset_name("Dataset027_ACDC") == "ACDC"


def test_an_unknown_name_is_met_with_the_nearest(space: Workspace) -> None:
    with pytest.raises(UsageError, match="did you mean 'OASIS'"):
        space.raw_folder("OASSIS")


def test_datasets_of_nnunet_are_found_after_our_own(
    space: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other" / "Dataset001_Heart").mkdir(parents=True)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "other"))
    assert space.raw_folder("1") == tmp_path / "other" / "Dataset001_Heart"


def test_two_datasets_of_one_short_name_are_not_mixed_up(space: Workspace) -> None:
    (space.raw_data / "Task27_ACDC").mkdir()
    assert space.raw_folder("ACDC") == space.raw_folder("27") == space.raw_data / "Dataset027_ACDC"
    with pytest.raises(UsageError, match="filed as 'ACDC'"):
        space.raw_folder("Task27_ACDC")


def test_the_environment_names_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDPLAN_WORKSPACE", str(tmp_path))
    assert Workspace.open().root == tmp_path.resolve()
    monkeypatch.setenv("MEDPLAN_WORKSPACE", str(tmp_path / "missing"))
    with pytest.raises(UsageError, match="MEDPLAN_WORKSPACE"):
        Workspace.open()


def test_what_is_filed_under_a_name_is_found_without_the_raw_data(space: Workspace) -> None:
    assert space.plan_name("27") == "ACDC"
    with pytest.raises(UsageError):
        space.plan_name("Union")
    (space.root / "results" / "Union").mkdir(parents=True)
    assert space.plan_name("Union") == "Union"


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a\\b"])
def test_names_of_plans_and_runs_are_those_of_folders(space: Workspace, name: str) -> None:
    with pytest.raises(UsageError, match="--name"):
        space.plan_path(name, "toy")
    with pytest.raises(UsageError, match="--run"):
        space.run_folder("ACDC", "toy", name)
