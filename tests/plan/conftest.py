"""Fingerprints of imaginary datasets."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from medplan.data.labels import LabelSpace


def make_fingerprint(
    name: str = "Phantom",
    *,
    num_labelled: int = 10,
    num_unlabelled: int = 0,
    shape: tuple[int, int, int] = (160, 200, 180),
    spacing_mm: tuple[float, float, float] | None = (1.0, 1.0, 1.0),
    modality: str = "MR",
    class_voxels: dict[str, int] | None = None,
    margin: int = 0,
    domains: tuple[str, ...] = (),
    patients: tuple[str, ...] = (),
    channels: tuple[str, ...] = ("image",),
) -> Any:
    """Return what the planner reads of a fingerprint; domains and patients go round the cases."""
    class_voxels = class_voxels or {"organ": 100_000, "tumour": 20_000}
    cases = []
    for number in range(num_labelled + num_unlabelled):
        is_labelled = number < num_labelled
        cases.append(
            SimpleNamespace(
                id=f"case{number:03d}",
                shape=shape,
                spacing_mm=spacing_mm,
                is_labelled=is_labelled,
                nonzero_box=((margin,) * 3, tuple(side - margin for side in shape)),
                body_box=((0, 0, 0), shape),
                classes={key: SimpleNamespace(voxels=n) for key, n in class_voxels.items()} if is_labelled else {},
                domain=domains[number % len(domains)] if domains else None,
                patient=patients[number % len(patients)] if patients else None,
            )
        )
    intensity = SimpleNamespace(mean=100.0, std=20.0, p00_5=-50.0, p99_5=250.0)
    return SimpleNamespace(
        name=name,
        channels=channels,
        modalities=(modality,) * len(channels),
        labels=LabelSpace(names=tuple(class_voxels), values=tuple((i + 1,) for i in range(len(class_voxels)))),
        file_ending=".nii.gz",
        cases=tuple(cases),
        intensities=(intensity,) * len(channels) if num_labelled else (),
    )


@pytest.fixture
def fingerprint() -> Callable[..., Any]:
    return make_fingerprint
