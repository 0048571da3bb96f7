"""AutoPET: lesions in whole-body FDG-PET."""

import re
from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.listing import choose, folders_of, require
from dataset_conversion.writing import Case, write_dataset

CARD = Card(
    name="AutoPET",
    title="AutoPET, whole-body FDG-PET/CT lesions",
    about="PET in standardised uptake values (SUV) of 900 patients, half of the studies without any lesion.",
    modality="PET",
    home="autopet.grand-challenge.org",
    licence="TCIA restricted licence",
    layout=(
        ("<patient>/<study>/SUV.nii.gz and SEG.nii.gz, also inside FDG-PET-CT-Lesions/; the CT is not read"),
    ),
    channels=("PET",),
    labels={"lesion": 1},
    num_cases="1014 studies of 900 patients",
    serves=("hermes",),
    split=(
        "By patient: all studies of a patient stay together (`patient`). Case ids hold the study's name, "
        "not a count."
    ),
)


def convert(source: Path, target: Path) -> None:
    """Take images and labels as they are; a study without lesion keeps its empty label."""
    root = choose(source, "FDG-PET-CT-Lesions") or source
    cases: list[Case] = []
    for patient in folders_of(root):
        for study in folders_of(patient):
            image, label = study / "SUV.nii.gz", study / "SEG.nii.gz"
            if image.is_file():
                require(study, label.is_file(), "SEG.nii.gz beside SUV.nii.gz")
                name = f"{patient.name}_{re.sub(r'[^A-Za-z0-9]+', '-', study.name).strip('-')}"
                cases.append(Case(id=name, images=(image,), label=label, patient=patient.name))
    require(root, bool(cases), "<patient>/<study>/SUV.nii.gz and SEG.nii.gz")
    write_dataset(CARD, cases, target, source=source)
