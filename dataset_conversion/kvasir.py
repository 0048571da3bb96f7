"""Kvasir-SEG: polyps in colonoscopy pictures."""

from functools import partial
from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.listing import by_pattern, pairs, require
from dataset_conversion.pictures import read_mask, read_picture
from dataset_conversion.writing import Case, write_dataset

CARD = Card(
    name="Kvasir",
    title="Kvasir-SEG",
    about="1000 colonoscopy pictures of many sizes, each with one or more outlined polyps.",
    modality="colour pictures (endoscopy)",
    home="datasets.simula.no/kvasir-seg",
    licence="research and education only",
    layout=(
        "images/<id>.jpg and masks/<id>.jpg (JPEG masks are grey at the edges: above 127 is polyp); "
        "the lists train.txt and val.txt may lie beside them",
    ),
    channels=("R", "G", "B"),
    labels={"polyp": 1},
    num_cases="1000 (880 for training, 120 for testing)",
    serves=("imedsam",),
    split="By picture; the publishers name no patients. If val.txt is there, its pictures become test cases.",
)


def convert(source: Path, target: Path) -> None:
    """Write pictures and thresholded masks as .png."""
    images = by_pattern(source / "images", r"(.+)\.(?:jpg|jpeg|png)")
    require(source, bool(images), "the folders images/ and masks/ with one .jpg per case")
    found = pairs(images, by_pattern(source / "masks", r"(.+)\.(?:jpg|jpeg|png)"), where=source)
    listed = source / "val.txt"
    official = set(listed.read_text().split()) if listed.is_file() else set()
    cases = (
        Case(
            id=key,
            images=(partial(read_picture, image),),
            label=partial(read_mask, mask),
            is_test=key in official,
        )
        for key, (image, mask) in found.items()
    )
    write_dataset(CARD, cases, target, source=source, ending=".png")
