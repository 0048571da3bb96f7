"""Phantoms and the real scans that tests share.

Phantoms are spheres of known volume on grids with anisotropic spacing. The real scans lie beside the
repository in ``../shared/data`` (or where ``MEDPLAN_TEST_DATA`` says); tests that need them are skipped where
they are missing.
"""

import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

ROOT = Path(__file__).parents[1]

# Torch reads it when a test imports it; the tensors are tiny, and more threads wait more than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """One synthetic scan: two nested spheres with an off-centre third one, in noise."""

    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]


def make_phantom(
    seed: int = 0,
    *,
    shape: tuple[int, int, int] = (20, 28, 24),
    spacing_mm: tuple[float, float, float] = (3.0, 1.5, 1.5),
    noise: float = 0.1,
) -> Phantom:
    """Return a body (intensity 1) with organ 1 (intensity 3) and organ 2 (intensity 5); air is exactly 0."""
    rng = np.random.default_rng(seed)
    grid = np.stack(
        np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing_mm, strict=True)), indexing="ij")
    )
    extent = np.array(shape) * spacing_mm

    def ball(centre: npt.NDArray[np.float64], radius: float) -> npt.NDArray[np.bool_]:
        return ((grid - (extent * centre)[:, None, None, None]) ** 2).sum(0) <= radius**2

    shift = rng.uniform(-0.04, 0.04, 3)
    body = ball(np.array([0.5, 0.5, 0.5]), 0.47 * extent.min())
    first = ball(np.array([0.5, 0.42, 0.42]) + shift, 0.2 * extent.min())
    second = ball(np.array([0.5, 0.66, 0.6]) + shift, 0.14 * extent.min())
    image = body * 1.0 + first * 2.0 + second * 4.0
    image = np.where(body, image + noise * rng.standard_normal(shape), 0.0)
    label = np.where(second, 2, np.where(first, 1, 0))
    return Phantom(image=image.astype(np.float32), label=label.astype(np.uint8), spacing_mm=spacing_mm)


def write_nifti(
    path: Path,
    array: npt.NDArray[np.generic],
    spacing_mm: tuple[float, float, float],
    **geometry: tuple[float, ...],
) -> Path:
    """Write an array (z, y, x) with SimpleITK; `geometry` may give origin and direction."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing(tuple(reversed(spacing_mm)))
    if "origin" in geometry:
        image.SetOrigin(geometry["origin"])
    if "direction" in geometry:
        image.SetDirection(geometry["direction"])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), True)
    return path


def make_raw_dataset(
    folder: Path,
    *,
    num_labelled: int = 4,
    num_unlabelled: int = 0,
    num_test: int = 0,
    ending: str = ".nii.gz",
) -> Path:
    """Write a raw dataset of phantoms in nnU-Net's layout; test cases have labels in labelsTs."""
    total = num_labelled + num_unlabelled
    for number in range(total + num_test):
        phantom = make_phantom(number)
        part = "Tr" if number < total else "Ts"
        name = f"case{number:02d}"
        write_nifti(folder / f"images{part}" / f"{name}_0000{ending}", phantom.image, phantom.spacing_mm)
        if number < num_labelled or number >= total:
            write_nifti(folder / f"labels{part}" / f"{name}{ending}", phantom.label, phantom.spacing_mm)
    description = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "numTraining": num_labelled,
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of every later search for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def phantom() -> Phantom:
    return make_phantom()


@pytest.fixture
def raw_dataset(tmp_path: Path) -> Path:
    """A raw dataset ``raw_data/Phantom`` with four labelled, two unlabelled and one test case."""
    return make_raw_dataset(tmp_path / "raw_data" / "Phantom", num_unlabelled=2, num_test=1)


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which no file can grow beyond 20 kB, as on a disk that is nearly full.

    It has to end inside the test: the file that a run's output is written to may be larger.
    """
    resource = pytest.importorskip("resource")

    @contextmanager
    def full() -> Iterator[None]:
        former = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, former[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, former)

    return full


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Return the folder of a real data set by name; skips the test where it is missing."""
    root = Path(os.environ.get("MEDPLAN_TEST_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"the real data set '{name}' is not there ({root})")
        return root / name

    return find
