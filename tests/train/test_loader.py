import os
import signal
import sys
from typing import Any

import numpy as np
import pytest
import torch

from medplan.errors import DataError, MethodError
from medplan.method import Batch, Phase
from medplan.runtime import Runtime
from medplan.samples.sampling import Labelled
from medplan.samples.spatial import Spatial
from medplan.train import loader
from medplan.train.loader import batches, collate, default_workers, to_device
from tests.train.toy import toy_plan, toy_store

CPU = Runtime(device=torch.device("cpu"))
PLAN = toy_plan()
STORE: Any = toy_store(PLAN)


def phase_of(sample: Any, *, num_steps: int = 4, batch_size: int = 4) -> Phase:
    return Phase(name="p", num_steps=num_steps, batch_size=batch_size, sample=sample)


def all_batches(
    phase: Phase, *, runtime: Runtime = CPU, workers: int = 0, first_step: int = 0
) -> list[Batch]:
    return list(batches(STORE, phase, seed=0, runtime=runtime, workers=workers, first_step=first_step))


def broken(store: Any, rng: np.random.Generator) -> dict[str, Any]:
    raise DataError("case 'Phantom/a' is broken: re-copy it.")


def wrong(store: Any, rng: np.random.Generator) -> dict[str, Any]:
    raise ZeroDivisionError("by design")


def deadly(store: Any, rng: np.random.Generator) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_do_not_depend_on_workers_nor_on_where_one_begins() -> None:
    phase = phase_of(Labelled((8, 12, 12)))
    alone, helped, later = all_batches(phase), all_batches(phase, workers=2), all_batches(phase, first_step=2)
    for one, two in zip(alone + alone[2:], helped + later, strict=True):
        assert torch.equal(one["image"], two["image"]) and one["seed"] == two["seed"]


def test_every_element_is_augmented_in_its_own_way() -> None:
    seeds = [seed for batch in all_batches(phase_of(Labelled((8, 12, 12)))) for seed in batch["seed"]]
    assert len(set(seeds)) == len(seeds) == 16


@pytest.mark.slow
def test_workers_that_are_no_forks_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    phase = phase_of(Labelled((8, 12, 12)), num_steps=2)
    for one, two in zip(all_batches(phase), all_batches(phase, workers=1), strict=True):
        assert torch.equal(one["image"], two["image"])


def test_two_ranks_share_the_batch_of_one() -> None:
    phase = phase_of(Labelled((8, 12, 12)))
    ranks = [all_batches(phase, runtime=Runtime(device=CPU.device, rank=rank, world=2)) for rank in range(2)]
    for whole, first, second in zip(all_batches(phase), *ranks, strict=True):
        assert torch.equal(whole["image"], torch.cat([first["image"], second["image"]]))
        assert whole["case"] == first["case"] + second["case"]


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(MethodError, match="batches of 4, which 3 processes cannot share"):
        all_batches(phase_of(wrong), runtime=Runtime(device=CPU.device, world=3))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_case_is_reported_in_its_own_words(workers: int) -> None:
    with pytest.raises(DataError, match=r"^case 'Phantom/a' is broken: re-copy it\.$"):
        all_batches(phase_of(broken), workers=workers)


def test_an_error_in_a_worker_keeps_its_traceback() -> None:
    with pytest.raises(DataError, match=r"(?s)Element 0 could not be drawn.*in wrong.*ZeroDivisionError"):
        all_batches(phase_of(wrong), workers=1)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_worker_that_is_killed_is_reported_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"(?s)ended by itself.*fewer --workers \(now 1\)"):
        all_batches(phase_of(deadly), workers=1)


def test_arrays_are_stacked_and_everything_else_is_listed() -> None:
    batch = collate([{"a": np.zeros(2), "n": np.int64(3), "case": "x", "none": None}] * 2)
    assert batch["a"].shape == (2, 2) and batch["n"].tolist() == [3, 3]
    assert batch["case"] == ["x", "x"] and batch["none"] == [None, None]


def test_arrays_of_unequal_shape_become_a_list_of_tensors() -> None:
    batch = collate([{"a": np.zeros(2)}, {"a": np.zeros(3)}])
    assert [len(item) for item in batch["a"]] == [2, 3]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_patches_of_unequal_shape_arrive_as_they_left() -> None:
    phase = phase_of(Labelled((8, 12, 12), spatial=Spatial(scaling_probability=1.0)))
    for alone, helped in zip(all_batches(phase), all_batches(phase, workers=2), strict=True):
        alone, helped = to_device(alone, CPU.device), to_device(helped, CPU.device)
        for key in ("image", "label"):
            assert all(map(torch.equal, alone[key], helped[key])) and isinstance(helped[key], list)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_large_batches_do_not_run_out_of_open_files() -> None:
    import resource

    phase = phase_of(Labelled((1, 8, 8), spatial=Spatial(scaling_probability=1.0)), batch_size=100)
    former = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, former[1]))
    try:
        assert len(all_batches(phase, workers=1)) == 4
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, former)


def test_elements_with_unequal_keys_are_refused() -> None:
    with pytest.raises(MethodError, match="different keys"):
        collate([{"a": np.zeros(2)}, {"b": np.zeros(2)}])


@pytest.mark.parametrize(
    ("free", "shared", "expected"),
    [(2**40, 2**40, 12), (None, None, 12), (2**32, 2**40, 3), (2**40, 500_000, 4), (2**20, 2**40, 1)],
)
def test_workers_are_as_many_as_cores_and_memory_allow(
    free: int | None, shared: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, answer in (("cores", 64), ("host_memory", free), ("shared_memory", shared)):
        monkeypatch.setattr(loader, name, lambda answer=answer: answer)
    # A worker keeps 3 batches of 2 patches of 1152 voxels ready, up to 3 times as large, and 512 MiB besides.
    assert default_workers(Runtime(device=torch.device("cuda", 0)), PLAN) == expected
    assert default_workers(CPU, PLAN) == 0


def test_too_little_shared_memory_for_a_worker_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loader, "shared_memory", lambda: 2**16)
    assert default_workers(Runtime(device=torch.device("cuda", 0)), PLAN) == 0
    assert "--shm-size" in caplog.text
