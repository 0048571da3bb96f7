"""What the machine has besides a GPU: cores, memory, disk, and its C library. torch is not needed."""

import ctypes
import os
import shutil
import sys
from pathlib import Path

__all__ = ["cores", "cpu_has_bf16", "free_disk", "host_memory", "shared_memory", "tune_allocator"]


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_has_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX); elsewhere it is slower."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def host_memory() -> int | None:
    """Return the bytes of main memory that are free, or None where the system does not say.

    In a container or a cluster's job, no more than what is left of its share.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return min([kilobytes["MemAvailable"] * 1024, *_left_of_shares()])


def _left_of_shares(
    control_groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """Return what each control group (version 2) that this process is in may still take."""
    try:
        place = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    left = []
    folder = control_groups / place.strip("/")
    for group in (folder, *folder.parents):
        try:
            most, used, kinds = (
                (group / f"memory.{name}").read_text() for name in ("max", "current", "stat")
            )
        except OSError:
            continue
        # Files that were read and are kept in case they are read again make way when memory is short.
        cached = sum(int(line.split()[1]) for line in kinds.splitlines() if line.startswith("inactive_file "))
        if most.strip() != "max":
            left.append(max(0, int(most) - int(used) + cached))
    return left


def shared_memory() -> int | None:
    """Return the free bytes that processes can share, or None where that is no disk of its own.

    Containers often have 64 MiB unless they are started with more.
    """
    folder = Path("/dev/shm")
    return free_disk(folder) if folder.is_dir() else None


def free_disk(folder: Path) -> int:
    """Return the free bytes of the disk that `folder` lies on or will lie on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def tune_allocator() -> bool:
    """Let glibc keep freed activations instead of giving them back to the kernel; True if it was done.

    Training and prediction on the CPU free and ask for the same hundreds of megabytes in every step; each
    page given back costs a fault when it is touched again. Does nothing under another C library, or where the
    user has set ``MALLOC_*`` variables. The process holds its peak memory until it ends.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    trim_threshold, mmap_max, never = -1, -4, -1
    return bool(library.mallopt(trim_threshold, never)) and bool(library.mallopt(mmap_max, 0))
