"""The verb info."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from medplan import __version__
from medplan.workspace import Workspace

__all__ = ["info"]

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "SimpleITK", "nibabel", "blosc2", "segment-anything")


def info(*, workspace: Path | None) -> None:
    """Print versions, devices, free memory and disk, and where weights are looked for."""
    from medplan import weights
    from medplan.machine import free_disk, host_memory
    from medplan.runtime import Runtime, device_memory

    space = Workspace.open(workspace)
    print(f"medplan {__version__}, Python {sys.version.split()[0]}, {platform.platform()}")
    print("packages: " + ", ".join(f"{name} {_installed(name)}" for name in PACKAGES))
    runtime = Runtime.choose("auto")
    memory = device_memory(runtime.device)
    print(
        f"device:   {runtime.device}"
        + (f", {memory / 1e9:.1f} GB" if memory else "")
        + f", {runtime.precision}"
    )
    memory_free = host_memory()
    print(f"memory:   {memory_free / 1e9:.1f} GB free" if memory_free else "memory:   unknown")
    print(f"disk:     {free_disk(space.root) / 1e9:.1f} GB free in {space.root}")
    print("weights:")
    for line in weights.describe():
        print(f"  {line}")


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
