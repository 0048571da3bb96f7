from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medplan import checkpoint
from medplan.errors import CheckpointError
from tests.train.toy import build, toy_plan


def test_weights_come_back_exactly_and_carry_their_plan(tmp_path: Path) -> None:
    plan = toy_plan()
    method = build(plan)
    path = checkpoint.save_weights(tmp_path / "best.pt", method, plan, fold=2, step=7, score=0.5)
    other = build(plan)
    nn.init.zeros_(other.get_parameter("head.weight"))
    state = checkpoint.load(path)
    checkpoint.restore(other, state["weights"], where="best.pt")
    assert all(
        torch.equal(a, b)
        for a, b in zip(method.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert checkpoint.plan_of(state, path=path) == plan
    assert (state["fold"], state["step"], state["score"]) == (2, 7, 0.5)
    assert [file.name for file in tmp_path.iterdir()] == ["best.pt"]


def test_equal_contents_are_equal_bytes_however_they_came_about(tmp_path: Path) -> None:
    word, pair = "lr", (0.9, 0.999)
    shared = {"a": {word: pair}, "b": {word: pair}}
    separate = {
        "a": {"".join(["l", "r"]): tuple([0.9, 0.999])},
        "b": {"".join(["l", "r"]): tuple([0.9, 0.999])},
    }
    wide = torch.arange(6.0)
    checkpoint.save(tmp_path / "x.pt", {**shared, "t": wide[:3].clone()})
    checkpoint.save(tmp_path / "another.pt", {**separate, "t": wide[:3]})
    assert (tmp_path / "x.pt").read_bytes() == (tmp_path / "another.pt").read_bytes()


def test_what_does_not_fit_is_listed_and_nothing_is_loaded() -> None:
    module = nn.Linear(2, 2)
    before = module.weight.detach().clone()
    weights = {"weight": torch.zeros(3, 2), "scale": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        checkpoint.restore(module, weights, where="x.pt")
    assert str(caught.value) == (
        "x.pt: the weights do not fit the network. missing: bias; unknown: scale; "
        "of another shape: weight (3, 2) instead of (2, 2)."
    )
    assert torch.equal(module.weight, before)


def test_a_file_that_is_cut_short_is_no_traceback(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "x.pt", {"a": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        checkpoint.load(path)
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.load(tmp_path / "y.pt")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"<!DOCTYPE html><html>",
        b"version https://git-lfs",
        bytes(range(256)),
    ],
)
def test_a_file_that_is_something_else_is_no_traceback(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        checkpoint.load_published(tmp_path / "weights.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(CheckpointError, match="expected a dictionary, found Tensor"):
        checkpoint.load_published(tmp_path / "tensor.pth")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"a": Path("x")}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        checkpoint.load(tmp_path / "x.pt")


def test_other_dictionaries_and_other_formats_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a model of medplan; it holds network"):
        checkpoint.plan_of({"network": 1}, path=tmp_path)
    with pytest.raises(CheckpointError, match="format 9; this version"):
        checkpoint.plan_of({"format": 9, "plan": {}, "weights": {}}, path=tmp_path)


def test_weights_are_found_under_any_wrapper_and_nothing_else_is() -> None:
    weights, others = {"a": torch.ones(2)}, {"b": torch.zeros(2)}
    for content in (
        weights,
        {**weights, "epoch": 3, 7: torch.zeros(1), "a.names": ["x"]},
        {"epoch": 3, "optimizer": others, "model": weights},
        {"model_state_dict": others, "ema_model_state_dict": weights},
        {"state_dict": {"model": weights}, "net": None},
    ):
        assert checkpoint.unwrapped(content).keys() == {"a"}


def test_published_keras_files_are_read_by_their_full_names(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["conv/conv/kernel:0"] = np.arange(6, dtype=np.float32).reshape(2, 3)
        file["names"] = np.array([b"conv"])
    found = checkpoint.load_published(tmp_path / "weights.h5")
    assert found.keys() == {"conv/conv/kernel:0"}
    assert found["conv/conv/kernel:0"].tolist() == [[0, 1, 2], [3, 4, 5]]
    (tmp_path / "broken.h5").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a readable Keras file"):
        checkpoint.load_published(tmp_path / "broken.h5")


@pytest.mark.parametrize("numbers", [20_000, 4_800])
def test_a_full_disk_is_one_sentence_and_leaves_no_file(
    tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]], numbers: int
) -> None:
    with full_disk(), pytest.raises(CheckpointError, match="is the disk full"):
        checkpoint.save(tmp_path / "last.pt", {"weights": torch.zeros(numbers)})
    assert list(tmp_path.iterdir()) == []
