"""Hippocampus: task 4 of the Medical Segmentation Decathlon."""

from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.msd import cases_of
from dataset_conversion.writing import write_dataset

CARD = Card(
    name="Hippocampus",
    title="Medical Segmentation Decathlon, Task04 Hippocampus",
    about=(
        "T1 MR cut to the hippocampus, about 35x50x35 voxels of 1 mm; intensity scales differ between cases."
    ),
    modality="MR (T1)",
    home="medicaldecathlon.com",
    licence="CC BY-SA 4.0",
    layout=("Task04_Hippocampus/ with imagesTr/ and labelsTr/", "a folder with images/ and labels/"),
    channels=("T1 MR",),
    labels={"anterior hippocampus": 1, "posterior hippocampus": 2},
    num_cases="260 for training, 130 for testing without labels",
    serves=("hermes", "supervised"),
    split="By case.",
)


def convert(source: Path, target: Path) -> None:
    """Take images and labels as they are, under nnU-Net's names."""
    write_dataset(CARD, cases_of(source), target, source=source)
