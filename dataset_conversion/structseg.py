"""The layout that both parts of StructSeg 2019 share: one numbered folder per case."""

from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.listing import choose, folders_of, require
from dataset_conversion.writing import Case, write_dataset

__all__ = ["convert_part"]


def convert_part(card: Card, source: Path, target: Path, *, part: str, prefix: str) -> None:
    """Take images and labels as they are, under nnU-Net's names.

    Args:
        part: folder of the part, in `source` or `source` itself.
        prefix: of the case ids.
    """
    cases: list[Case] = []
    for folder in folders_of(choose(source, part) or source):
        image, label = folder / "data.nii.gz", folder / "label.nii.gz"
        if image.is_file() and folder.name.isdigit():
            require(folder, label.is_file(), "label.nii.gz beside data.nii.gz")
            cases.append(Case(id=f"{prefix}_{int(folder.name):02d}", images=(image,), label=label))
    require(source, bool(cases), f"{part}/N/data.nii.gz and label.nii.gz")
    write_dataset(card, cases, target, source=source)
