"""Kvasir-Sessile: the flat polyps of Kvasir-SEG."""

from functools import partial
from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.listing import by_pattern, pairs, require
from dataset_conversion.pictures import read_mask, read_picture
from dataset_conversion.writing import Case, write_dataset

CARD = Card(
    name="KvasirSessile",
    title="Kvasir-Sessile",
    about="196 colonoscopy pictures of small, flat polyps, a part of Kvasir-SEG.",
    modality="colour pictures (endoscopy)",
    home="datasets.simula.no/kvasir-seg",
    licence="research and education only",
    layout=(
        "as packed for I-MedSAM: train/, val/ and test/, each with images/ and masks/ of equal file names",
        "the publishers' own: images/ and masks/",
    ),
    channels=("R", "G", "B"),
    labels={"polyp": 1},
    num_cases="196",
    serves=("imedsam",),
    split=(
        "By picture. test/ becomes test cases; train/ and val/ are kept as the split `published` in "
        "dataset.json."
    ),
)


def convert(source: Path, target: Path) -> None:
    """Write pictures and thresholded masks as .png."""
    cases: list[Case] = []
    roles: dict[str, tuple[str, ...]] = {}
    for role, part in (("labelled", "train"), ("validation", "val"), ("test", "test"), ("", ".")):
        folder = source / part
        pattern = r"(.+)\.(?:png|jpg|jpeg|tif)"
        found = pairs(
            by_pattern(folder / ("images"), pattern), by_pattern(folder / "masks", pattern), where=folder
        )
        for key, (image, mask) in found.items():
            picture = (partial(read_picture, image),)
            cases.append(Case(id=key, images=picture, label=partial(read_mask, mask), is_test=role == "test"))
        if found and role:
            roles[role] = tuple(found)
    require(source, bool(cases), "train/, val/ and test/ with images/ and masks/, or images/ and masks/")
    splits = {"published": roles} if roles else {}
    write_dataset(CARD, cases, target, source=source, ending=".png", splits=splits)
