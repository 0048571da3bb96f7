"""PolypGen: polyps from six centres."""

import re
from functools import partial
from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.listing import by_pattern, folders_of, pairs, require
from dataset_conversion.pictures import read_mask, read_picture
from dataset_conversion.writing import Case, write_dataset

CARD = Card(
    name="PolypGen",
    title="PolypGen (EndoCV 2021), single frames",
    about="1537 colonoscopy frames of six hospitals with outlined polyps, for learning across centres.",
    modality="colour pictures (endoscopy)",
    home="www.synapse.org (syn26376615)",
    licence="CC BY-NC-SA 4.0",
    layout=(
        "data_C1/ to data_C6/, each with images_CN/<id>.jpg and masks_CN/<id>_mask.jpg; video sequences are "
        "not read",
    ),
    channels=("R", "G", "B"),
    labels={"polyp": 1},
    num_cases="1537 frames of six centres",
    serves=("imedsam", "sdmessenger"),
    split="By centre (`domain`); frames are not assigned to patients by the publishers.",
)


def convert(source: Path, target: Path) -> None:
    """Write pictures and thresholded masks as .png; a frame without polyp keeps its empty mask."""
    cases: list[Case] = []
    for folder in folders_of(source):
        centre = re.fullmatch(r"data_(C\d)", folder.name)
        if centre is None:
            continue
        images = by_pattern(folder / f"images_{centre[1]}", r"(.+)\.(?:jpg|jpeg|png)")
        masks = by_pattern(folder / f"masks_{centre[1]}", r"(.+?)(?:_mask)?\.(?:jpg|jpeg|png)")
        for key, (image, mask) in pairs(images, masks, where=folder).items():
            name = f"{centre[1]}_{re.sub(r'[^A-Za-z0-9]+', '_', key)}"
            picture = (partial(read_picture, image),)
            cases.append(Case(id=name, images=picture, label=partial(read_mask, mask), domain=centre[1]))
    require(source, bool(cases), "data_C1/ to data_C6/ with images_CN/ and masks_CN/")
    write_dataset(CARD, cases, target, source=source, ending=".png")
