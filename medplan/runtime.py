"""Devices, ranks, precision and memory: the only file that looks at the GPU or the process group."""

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode

from medplan.errors import UsageError, did_you_mean
from medplan.machine import cores, cpu_has_bf16

__all__ = ["Precision", "Runtime", "device_memory"]

Precision = Literal["auto", "bf16", "fp16", "fp32"]

_BUCKET_BYTES = 64 * 2**20
_PRECISIONS: tuple[Literal["bf16", "fp16", "fp32"], ...] = ("bf16", "fp16", "fp32")
_WITHOUT_TENSOR_CORES = (
    "GTX 16", "T400", "T500", "T550", "T600", "T1000", "T1200", "T2000", "MX450", "MX550",
)  # fmt: skip
"""Small cards of the generation of the T4; some convolve to NaN in float16 (pytorch/pytorch issue 58123)."""
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where a process computes, and which one of how many processes it is.

    Attributes:
        device: of all tensors.
        rank: number of this process, from 0.
        world: number of processes that train together.
        precision: ``bf16`` runs convolutions and matrix products in bfloat16, ``fp16`` in float16, for which
            `medplan.train.update` scales losses; parameters stay float32.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    precision: Literal["bf16", "fp16", "fp32"] = "fp32"

    @classmethod
    def choose(
        cls,
        device: str = "auto",
        *,
        precision: Precision = "auto",
        joins: bool = False,
    ) -> "Runtime":
        """Pick a device.

        Args:
            device: ``auto`` (CUDA, else Apple's GPU, else CPU), ``cpu``, ``cuda``, ``cuda:<n>`` or ``mps``.
                Under `torchrun`, ``auto`` and ``cuda`` give each process of a machine its own GPU.
            precision: ``auto`` takes bf16 where the hardware computes in it, else fp16 where it has units for
                that, else fp32.
            joins: train together with the other processes that `torchrun` started; else compute alone.

        Raises: UsageError if there is no such device.
        """
        world, rank = (
            (int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))) if joins else (1, 0)
        )
        chosen = _find_device(device, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
        on_gpu = chosen.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(chosen)
            # Patches have one shape throughout, so the fastest convolutions are worth looking for.
            torch.backends.cudnn.benchmark = True
        if world > 1 and not dist.is_initialized():
            # What tells the others to stop goes from host to host, so that no step waits for the GPU for it.
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                timeout=datetime.timedelta(hours=2),
                device_id=chosen if on_gpu else None,
            )
        if precision == "auto":
            precision = _fastest(chosen)
        alone = cls(device=chosen, rank=rank, world=world, precision=precision)
        # GPUs of several kinds compute in what all of them have.
        return replace(alone, precision=_PRECISIONS[alone.largest(_PRECISIONS.index(precision))])

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context for forward passes and losses."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        if self.device.type == "cpu":
            return _autocast_on_cpu(_TYPES[self.precision])
        return torch.autocast(self.device.type, dtype=_TYPES[self.precision])

    def without_autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context for what must keep the precision of its inputs, the backward pass among them."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, enabled=False)

    def average(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the mean of each tensor over the ranks, sent in a few flat buckets."""
        if self.world == 1:
            return list(tensors)
        averaged: list[Tensor] = []
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            flat /= self.world
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            averaged += [part.view_as(tensor) for part, tensor in zip(parts, bucket, strict=True)]
        return averaged

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors by those of rank 0, sent in a few flat buckets."""
        if self.world == 1:
            return
        for bucket in _buckets(sorted(tensors, key=lambda tensor: str(tensor.dtype))):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.broadcast(flat, src=0)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def largest(self, flag: int) -> int:
        """Return the largest flag over the ranks, so that all ranks act on it at the same step."""
        if self.world == 1:
            return flag
        value = torch.tensor(flag)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return int(value)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def wait(self) -> None:
        """Return when the device has done what it was given, for timing."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def peak_bytes(self) -> int:
        """Return the most device memory held so far (on the CPU: the resident size of the process)."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if sys.platform == "linux":  # where getrusage() gives the peak of the parent if that is larger
            peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2]
            if peak:
                return int(peak.split()[0]) * 1024
        if sys.platform == "win32":
            return 0
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def memory(self) -> str:
        """Return in words how much memory there is, for messages."""
        if self.device.type != "cuda":
            return "the memory of this machine"
        free, total = torch.cuda.mem_get_info(self.device)
        own = torch.cuda.memory_reserved(self.device)
        others = total - free - own
        text = f"the {total / 2**30:.1f} GiB of the GPU"
        return text + (f", of which other programs hold {others / 2**30:.1f}," if others > 2**30 else "")

    def describe(self) -> str:
        """Return one readable line."""
        name = (
            torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"{cores()} CPU cores"
        )
        ranks = f", {self.world} processes" if self.world > 1 else ""
        return f"{self.device} ({name}), {self.precision}{ranks}"


def device_memory(device: torch.device | None = None) -> int | None:
    """Return the total memory of a CUDA device in bytes, or None without one."""
    if not torch.cuda.is_available() or (device is not None and device.type != "cuda"):
        return None
    return int(torch.cuda.mem_get_info(device)[1])


def _find_device(name: str, *, local_rank: int) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and (kind != "cuda" or not number.isdigit())):
        hint = did_you_mean(name, ("auto", "cpu", "cuda", "cuda:0", "mps"))
        raise UsageError(f"--device {name}: expected auto, cpu, cuda, cuda:<number> or mps{hint}.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: this machine has no Apple GPU that torch can use; take --device cpu.")
    if kind != "cuda":
        return torch.device(kind)
    if not torch.cuda.is_available():
        raise UsageError(
            f"--device {name}: torch {torch.__version__} finds no CUDA device (no NVIDIA GPU, no driver, or "
            "a torch built for the CPU). Take --device cpu, or install a CUDA build of torch."
        )
    index, count = int(number) if number else local_rank, torch.cuda.device_count()
    if index >= count:
        raise UsageError(f"--device cuda:{index}: there are only {count} CUDA devices, numbered from 0.")
    return torch.device("cuda", index)


class _FlatVolumesInFloat32(TorchFunctionMode):
    """Convolve volumes that are two voxels deep in float32.

    For these, and only these, the weight gradient of bfloat16 convolutions reads memory that nobody has
    written (oneDNN 3.12, in torch 2.14): gradients of 1e30 or NaN, now and then.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        is_flat = func is torch.conv3d and args[0].shape[2] == 2
        if is_flat:
            args = [value.float() if isinstance(value, Tensor) else value for value in args]
        with torch.autocast("cpu", enabled=False) if is_flat else contextlib.nullcontext():
            return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _autocast_on_cpu(kind: torch.dtype) -> Iterator[None]:
    with torch.autocast("cpu", dtype=kind), _FlatVolumesInFloat32():
        yield


def _fastest(device: torch.device) -> Literal["bf16", "fp16", "fp32"]:
    if device.type != "cuda":
        return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"
    # Not what torch says is supported: older cards compute bfloat16 by emulation, which is slow.
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return "bf16"
    name = torch.cuda.get_device_name(device)
    has_units = capability >= (7, 0) and not any(kind in name for kind in _WITHOUT_TENSOR_CORES)
    return "fp16" if has_units else "fp32"


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        if bucket and (size + num_bytes > _BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += num_bytes
    if bucket:
        yield bucket
