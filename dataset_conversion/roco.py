"""ROCO: radiology pictures out of publications, for pre-training."""

from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.listing import choose, require
from dataset_conversion.radiology import convert_pictures

CARD = Card(
    name="ROCO",
    title="Radiology Objects in Context",
    about=(
        "Pictures of all radiological modalities out of open-access publications; the captions are not read."
    ),
    modality="grey or colour pictures, mixed modalities",
    home="github.com/razorx89/roco-dataset",
    licence="differs from picture to picture",
    layout=(
        "data/train/radiology/ (or all_data/train/radiology/, or train/radiology/) with the fetched "
        "pictures, at any depth; the folders `validation`, `test` and `non-radiology` are not read",
    ),
    channels=("grey",),
    labels={},
    num_cases="about 65400 in the training part",
    serves=("densemp",),
    split="All cases are unlabelled and serve for pre-training.",
)


def convert(source: Path, target: Path) -> None:
    """Write every readable picture of the training part as .png; what is left out is counted and named."""
    places = [f"{top}train/radiology" for top in ("data/", "all_data/", "")]
    folder = choose(source, *places)
    require(source, folder is not None, "data/train/radiology/ with pictures")
    convert_pictures(CARD, source, target, folder=folder or source)
