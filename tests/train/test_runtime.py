import subprocess
import sys

import numpy as np
import pytest
import torch

from medplan.errors import UsageError
from medplan.runtime import Runtime
from tests.conformance.device import emulated


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:1", "coda"])
def test_an_unknown_device_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError, match="expected auto, cpu, cuda"):
        Runtime.choose(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_says_why_and_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"finds no CUDA device.*--device cpu"):
        Runtime.choose("cuda")
    assert Runtime.choose("auto").device.type in ("cpu", "mps")


def test_autocast_computes_in_what_is_asked_for() -> None:
    layer, image = torch.nn.Linear(4, 4), torch.ones(1, 4)
    for name, kind in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        runtime = Runtime.choose("cpu", precision=name)  # type: ignore[arg-type]
        with runtime.autocast():
            assert layer(image).dtype == kind
            with runtime.without_autocast():
                assert layer(image).dtype == torch.float32
    with Runtime.choose("cpu", precision="fp32").autocast():
        assert layer(image).dtype == torch.float32


def test_only_who_trains_joins_the_processes_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("medplan.runtime.dist.init_process_group", lambda kind, **_: joined.append(kind))
    monkeypatch.setattr("medplan.runtime.dist.all_reduce", lambda value, op: None)
    alone = Runtime.choose("cpu")
    assert (alone.world, alone.rank, joined) == (1, 0, [])
    together = Runtime.choose("cpu", joins=True)
    assert (together.world, together.rank, joined) == (2, 1, ["gloo"])
    with emulated():
        Runtime.choose("cuda:0", joins=True)
    assert joined[1:] == ["cpu:gloo,cuda:nccl"]


def test_ranks_with_gpus_of_several_kinds_compute_in_what_all_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("medplan.runtime.dist.init_process_group", lambda kind, **_: None)
    monkeypatch.setattr("medplan.runtime.dist.all_reduce", lambda value, op: value.clamp_(min=1))
    assert Runtime.choose("cpu", precision="bf16", joins=True).precision == "fp16"


def test_alone_everything_is_its_own_average() -> None:
    runtime, tensor = Runtime(device=torch.device("cpu")), torch.ones(3)
    assert runtime.average([tensor])[0] is tensor
    assert (runtime.largest(3), runtime.gather("x")) == (3, ["x"])


def test_volumes_two_voxels_deep_have_exact_gradients_on_the_cpu() -> None:
    runtime = Runtime(device=torch.device("cpu"), precision="bf16")
    torch.manual_seed(0)
    weight, volume = torch.randn(16, 16, 3, 3, 3, requires_grad=True), torch.randn(2, 16, 2, 4, 4)
    for _ in range(5):
        del [torch.full((weight.numel() // 2 + 1,), 1e30) for _ in range(4)][:]
        with runtime.autocast():
            flat = torch.nn.functional.conv3d(volume, weight, padding=1)
            deep = torch.nn.functional.conv3d(torch.cat([volume, volume], dim=2), weight, padding=1)
        assert (flat.dtype, deep.dtype) == (torch.float32, torch.bfloat16)
        (gradient,) = torch.autograd.grad(flat.square().sum(), weight)
        exact = torch.nn.functional.conv3d(volume, weight, padding=1)
        (expected,) = torch.autograd.grad(exact.square().sum(), weight)
        assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-3)


def test_a_gpu_is_set_up_for_patches_of_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    for name, answer in (("is_available", True), ("device_count", 2), ("get_device_capability", (9, 0))):
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    Runtime.choose("cuda:1")
    assert chosen == [torch.device("cuda", 1)] and torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    ("name", "capability", "expected"),
    [
        ("NVIDIA A100-SXM4-40GB", (8, 0), "bf16"),
        ("NVIDIA GeForce RTX 4090", (8, 9), "bf16"),
        ("Tesla T4", (7, 5), "fp16"),
        ("NVIDIA GeForce RTX 2080 Ti", (7, 5), "fp16"),
        ("Tesla V100-SXM2-16GB", (7, 0), "fp16"),
        ("NVIDIA GeForce GTX 1660 Ti", (7, 5), "fp32"),
        ("NVIDIA T600 Laptop GPU", (7, 5), "fp32"),
        ("Tesla P100-PCIE-16GB", (6, 0), "fp32"),
    ],
)
def test_a_gpu_computes_in_what_it_has_units_for(
    name: str, capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with emulated():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
        assert Runtime.choose("cuda").precision == expected
        assert Runtime.choose("cuda", precision="fp32").precision == "fp32"
        assert f"({name}), {expected}" in Runtime.choose("auto").describe()


def test_messages_say_what_memory_there_is_and_what_others_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * 2**30, 16 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 4 * 2**30)
    runtime = Runtime(device=torch.device("cuda", 0))
    assert runtime.memory() == "the 16.0 GiB of the GPU, of which other programs hold 10.0,"
    assert Runtime(device=torch.device("cpu")).memory() == "the memory of this machine"


def test_buffers_of_many_layers_are_sent_in_few_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[torch.Tensor] = []

    def arrive(flat: torch.Tensor, src: int) -> None:
        sent.append(flat)
        flat.copy_(torch.arange(len(flat)))

    monkeypatch.setattr("medplan.runtime.dist.broadcast", arrive)
    norms = [torch.nn.BatchNorm3d(2) for _ in range(20)]
    buffers = [buffer for norm in norms for buffer in norm.buffers()]
    Runtime(device=torch.device("cpu"), rank=1, world=2).broadcast(buffers)
    assert len(sent) == 2  # float32 and int64
    assert norms[1].running_mean.tolist() == [4.0, 5.0] and int(norms[19].num_batches_tracked) == 19


def test_the_peak_of_a_process_is_its_own_and_not_that_of_its_parent() -> None:
    held = np.ones(2**30, dtype=np.uint8)
    code = "from medplan.runtime import Runtime; print(Runtime.choose('cpu').peak_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**25 < int(child.stdout) < 2**30 < Runtime.choose("cpu").peak_bytes()
    assert held.all()
