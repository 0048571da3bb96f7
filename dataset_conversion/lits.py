"""LiTS: liver and liver tumours in CT."""

from functools import partial
from pathlib import Path

import numpy as np

from dataset_conversion.card import Card
from dataset_conversion.listing import by_pattern, folders_below, require
from dataset_conversion.volumes import Volume, read_nifti
from dataset_conversion.writing import Case, Source, write_dataset
from medplan.errors import DataError

CARD = Card(
    name="LiTS",
    title="Liver Tumour Segmentation Benchmark",
    about="Contrast-enhanced abdominal CT of seven hospitals, liver and tumours labelled.",
    modality="CT",
    home="competitions.codalab.org/competitions/17094",
    licence="CC BY-NC-ND 4.0",
    layout=(
        "volume-N.nii and segmentation-N.nii, N from 0 to 130, and test-volume-N.nii, in any folders below; "
        "17 volumes (28, 31-38, 40-47) come with a wrong spacing, which is replaced in image and label by "
        "the one that Hermes uses",
    ),
    channels=("CT",),
    labels={"liver": 1, "tumour": 2},
    num_cases="131 with labels, 70 for testing without",
    serves=("hermes",),
    split="By scan.",
)

_SLICES_MM = dict(
    zip(
        (28, *range(31, 39), *range(40, 48)),
        (1.7, 2.5, 1.5, 1.8, 1.7, 1.9, 2.0, 1.7, 1.7, 1.7, 1.8, 1.6, 1.8, 2.0, 2.5, 2.5, 1.7),
        strict=True,
    )
)
"""Distance of slices of the volumes whose header is wrong; in the plane they have 1 mm."""


def convert(source: Path, target: Path) -> None:
    """Take images and labels as they are, except for the spacing of the volumes whose header is wrong."""
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    tests: dict[str, Path] = {}
    for folder in folders_below(source):
        images |= by_pattern(folder, r"volume-(\d+)\.nii(?:\.gz)?")
        labels |= by_pattern(folder, r"segmentation-(\d+)\.nii(?:\.gz)?")
        tests |= by_pattern(folder, r"test-volume-(\d+)\.nii(?:\.gz)?")
    require(source, bool(images), "volume-N.nii and segmentation-N.nii")
    lacking = sorted(images.keys() - labels.keys())
    if lacking:
        raise DataError(f"{images[lacking[0]]}: has no segmentation-{lacking[0]}.nii; complete the download.")
    cases = [
        Case(id=f"lits_{int(n):03d}", images=(_spaced(path, int(n)),), label=_spaced(labels[n], int(n)))
        for n, path in images.items()
    ]
    cases += [Case(id=f"lits_test_{int(n):03d}", images=(path,), is_test=True) for n, path in tests.items()]
    write_dataset(CARD, cases, target, source=source)


def _spaced(path: Path, number: int) -> Source:
    return partial(_corrected, path, _SLICES_MM[number]) if number in _SLICES_MM else path


def _corrected(path: Path, slices_mm: float) -> Volume:
    volume = read_nifti(path)
    affine = volume.affine.copy()
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    affine[:3, :3] = directions * np.array([1.0, 1.0, slices_mm])
    return Volume(voxels=volume.voxels, affine=affine)
