"""OASIS: T1 MR of the brain, for one-shot segmentation."""

import csv
import re
from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.freesurfer import SEG4, SEG35
from dataset_conversion.listing import by_pattern, folders_of, pairs, require
from dataset_conversion.writing import Case, write_dataset

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
    label_groups=("miccai2012",),
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
            CARD, cases, target, source=source, labels=_named(source / "labels.csv"), only_present=True
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
    table = source / ("seg35_labels.txt" if fine else "seg4_labels.txt")
    return cases, _colour_table(table) if table.is_file() else SEG35 if fine else SEG4


def _colour_table(path: Path) -> dict[str, int]:
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[1]: int(row[0]) for row in rows if len(row) > 1 and row[0].isdigit() and int(row[0]) > 0}


def _named(table: Path) -> dict[str, int]:
    require(table.parent, table.is_file(), "labels.csv beside the scans, which names the label values")
    with table.open(newline="") as file:
        return {" ".join(row[1].split()): int(row[0]) for row in csv.reader(file) if row and row[0].isdigit()}
