"""CHAOS: abdominal organs in MR."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_conversion.card import Card
from dataset_conversion.listing import by_pattern, files_of, folders_of, pairs, require
from dataset_conversion.pictures import read_picture
from dataset_conversion.volumes import Volume, read_series
from dataset_conversion.writing import Case, Source, write_dataset
from medplan.errors import DataError

CARD = Card(
    name="CHAOS",
    title="Combined Healthy Abdominal Organ Segmentation (MR part)",
    about=(
        "Abdominal MR of 40 people in three sequences (T1 in and out of phase, T2-SPIR); 4 organs, thick "
        "slices."
    ),
    modality="MR (T1-DUAL, T2-SPIR)",
    home="chaos.grand-challenge.org",
    licence="CC BY-NC-SA 4.0",
    layout=(
        "as prepared for few-shot work (T2-SPIR): image_N.nii.gz and label_N.nii.gz, N the number of the "
        "patient",
        "the challenge's own: MR/<id>/T1DUAL/{DICOM_anon/InPhase,DICOM_anon/OutPhase,Ground} and "
        "MR/<id>/T2SPIR/{DICOM_anon,Ground}, also inside Train_Sets/ and Test_Sets/; the labels are one "
        "picture per slice, paired with the DICOM files by the numbers in their names and put where that "
        "file lies in space; grey values 63 liver, 126 right kidney, 189 left kidney, 252 spleen, each with "
        "a band of tolerance",
    ),
    channels=("MR",),
    labels={"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4},
    num_cases="20 patients x 3 images with labels, 20 more without",
    serves=("hermes", "densemp", "sdmessenger"),
    split=(
        "By patient: the three sequences of a patient stay together (`patient`); the sequence is the "
        "`domain`."
    ),
)

_BANDS = ((55, 70, 1), (110, 135, 2), (175, 200, 3), (240, 255, 4))
_SEQUENCES = (
    ("t1in", "T1DUAL/DICOM_anon/InPhase", "T1DUAL/Ground", "T1 in-phase"),
    ("t1out", "T1DUAL/DICOM_anon/OutPhase", "T1DUAL/Ground", "T1 out-phase"),
    ("t2spir", "T2SPIR/DICOM_anon", "T2SPIR/Ground", "T2-SPIR"),
)


def convert(source: Path, target: Path) -> None:
    """Take NIfTI files as they are; put DICOM series and label pictures into NIfTI."""
    cases = cases_of(source)
    require(source, bool(cases), "image_N.nii.gz with label_N.nii.gz, or MR/<id>/T2SPIR/DICOM_anon")
    write_dataset(CARD, cases, target, source=source)


def cases_of(source: Path) -> list[Case]:
    """Return the cases in either layout; an empty list if there are none."""
    images = by_pattern(source, r"image_(\d+)\.nii(?:\.gz)?")
    if images:
        found = pairs(images, by_pattern(source, r"label_(\d+)\.nii(?:\.gz)?"), where=source)
        return [
            Case(
                id=f"chaos{int(n):02d}_t2spir",
                images=(i,),
                label=k,
                domain="T2-SPIR",
                patient=f"chaos{int(n):02d}",
            )
            for n, (i, k) in found.items()
        ]
    cases = []
    for root in (source, source / "MR", source / "Train_Sets" / "MR", source / "Test_Sets" / "MR"):
        for folder in folders_of(root):
            cases += _patient(folder) if folder.name.isdigit() else []
    return cases


def _patient(folder: Path) -> list[Case]:
    patient = f"chaos{int(folder.name):02d}"
    cases = []
    for short, scan, ground, domain in _SEQUENCES:
        if (folder / scan).is_dir():
            has_label = bool(files_of(folder / ground))
            label: Source | None = partial(_label, folder / scan, folder / ground) if has_label else None
            image = partial(_image, folder / scan)
            cases.append(
                Case(id=f"{patient}_{short}", images=(image,), label=label, domain=domain, patient=patient)
            )
    return cases


def _image(folder: Path) -> Volume:
    return read_series(folder)[0]


def _label(scan: Path, ground: Path) -> Volume:
    volume, slices = read_series(scan)
    pictures = [path for path in files_of(ground) if path.suffix.lower() == ".png"]
    if len(pictures) != len(slices):
        raise DataError(
            f"{ground}: holds {len(pictures)} label pictures for {len(slices)} slices; fetch it again."
        )
    names = [path.name for path in slices]
    in_space = {name: position for position, name in enumerate(names)}
    voxels = np.zeros(volume.voxels.shape, dtype=np.uint8)
    ordered = [path.name for path in files_of(scan) if path.name in in_space]
    for picture, name in zip(pictures, ordered, strict=True):
        grey = read_picture(picture, coloured=False)
        if grey.T.shape != voxels.shape[:2]:
            raise DataError(f"{picture}: is {grey.T.shape} pixels, the slice '{name}' {voxels.shape[:2]}.")
        voxels[:, :, in_space[name]] = _organs(grey, picture).T
    return Volume(voxels=voxels, affine=volume.affine)


def _organs(grey: npt.NDArray[Any], where: Path) -> npt.NDArray[np.uint8]:
    organs = np.zeros(grey.shape, dtype=np.uint8)
    for low, high, value in _BANDS:
        organs[(grey >= low) & (grey <= high)] = value
    odd = np.unique(grey[(organs == 0) & (grey != 0)])
    if odd.size:
        raise DataError(
            f"{where}: holds grey values {odd[:10].tolist()}, expected 0 and about 63, 126, 189, 252."
        )
    return organs
