"""OASIS: T1 MR of the brain, for one-shot segmentation."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dataset_conversion.card import Card
from dataset_conversion.freesurfer import GROUPINGS, SEG4, SEG35
from dataset_conversion.listing import by_pattern, folders_of, pairs, require
from dataset_conversion.volumes import read_nifti
from dataset_conversion.writing import Case, write_dataset
from medplan.errors import DataError

CARD = Card(
    name="OASIS",
    title="OASIS-1 brains with labels",
    about="T1 MR of skull-stripped brains at 1 mm with tens of labelled structures.",
    modality="MR (T1)",
    home="www.oasis-brains.org",
    licence="OASIS data use agreement; the MICCAI-2012 labels are CC BY-NC",
    layout=(
        "MICCAI-2012 multi-atlas labels: <id>_SS.nii.gz, <id>_glm.nii.gz and labels.csv, which names the "
        "values (138 regions occur; the values stay as they are)",
        "neurite's collection: OASIS_OAS1_xxxx_MR1/ with aligned_norm.nii.gz and aligned_seg35.nii.gz (or "
        "aligned_seg4.nii.gz); a folder without either is unlabelled",
    ),
    channels=("T1 MR",),
    labels={},
    num_cases="15 or 35 (MICCAI-2012), 414 (neurite)",
    serves=("bijros", "hermes"),
    split="By subject; Bi-JROS labels one case and publishes no list.",
    groupings=GROUPINGS,
)


def convert(source: Path, target: Path) -> None:
    """Take images and labels as they are and name the label values."""
    images = by_pattern(source, r"(.+)_SS\.nii(?:\.gz)?")
    if images:
        labels = by_pattern(source, r"(.+)_glm\.nii(?:\.gz)?")
        cases = [
            Case(id=key, images=(image,), label=label)
            for key, (image, label) in pairs(images, labels, where=source).items()
        ]
        write_dataset(
            CARD, cases, target, source=source, labels=_named(source / "labels.csv", labels.values())
        )
        return
    cases, structures = _neurite(source)
    require(
        source, bool(cases), "<id>_SS.nii.gz with <id>_glm.nii.gz, or OASIS_OAS1_xxxx_MR1/aligned_norm.nii.gz"
    )
    write_dataset(CARD, cases, target, source=source, labels=structures)


def _neurite(source: Path) -> tuple[list[Case], dict[str, int]]:
    folders = [folder for folder in folders_of(source) if (folder / "aligned_norm.nii.gz").is_file()]
    fine = any((folder / "aligned_seg35.nii.gz").is_file() for folder in folders)
    name = "aligned_seg35.nii.gz" if fine else "aligned_seg4.nii.gz"
    cases = []
    for folder in folders:
        label = folder / name if (folder / name).is_file() else None
        subject = re.sub(r"_MR\d+$", "", folder.name)
        cases.append(
            Case(id=folder.name, images=(folder / "aligned_norm.nii.gz",), label=label, patient=subject)
        )
    return cases, SEG35 if fine else SEG4


def _named(table: Path, labels: Iterable[Path]) -> dict[str, int]:
    """Return the names of the values that occur in the label files, in the order of the values."""
    require(table.parent, table.is_file(), "labels.csv beside the scans, which names the label values")
    with table.open(newline="") as file:
        names = {
            int(row[0]): " ".join(row[1].split()) for row in csv.reader(file) if row and row[0].isdigit()
        }
    present = sorted({int(value) for path in labels for value in np.unique(read_nifti(path).voxels)} - {0})
    unknown = [value for value in present if value not in names]
    if unknown:
        raise DataError(
            f"{table}: names no label value(s) {unknown[:10]}, but they occur; fetch the table again."
        )
    return {names[value]: value for value in present}
