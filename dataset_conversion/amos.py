"""AMOS: fifteen abdominal organs in CT and MR."""

from collections.abc import Mapping
from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.listing import by_pattern, require
from dataset_conversion.writing import Case, write_dataset
from medplan.errors import DataError

CARD = Card(
    name="AMOS",
    title="AMOS 2022, abdominal multi-organ segmentation",
    about=(
        "Abdominal CT (500) and MR (100) of different patients with 15 organs; MR scans lack bladder and "
        "prostate."
    ),
    modality="CT and MR",
    home="amos22.grand-challenge.org",
    licence="CC BY 4.0",
    layout=("amos22/ with imagesTr/, labelsTr/, imagesVa/, labelsVa/ and imagesTs/, files amos_XXXX.nii.gz",),
    channels=("MR or CT",),
    labels={
        "spleen": 1,
        "right kidney": 2,
        "left kidney": 3,
        "gallbladder": 4,
        "oesophagus": 5,
        "liver": 6,
        "stomach": 7,
        "aorta": 8,
        "postcava": 9,
        "pancreas": 10,
        "right adrenal gland": 11,
        "left adrenal gland": 12,
        "duodenum": 13,
        "bladder": 14,
        "prostate or uterus": 15,
    },
    num_cases="300 CT and 60 MR with labels",
    serves=("hermes", "sdmessenger", "imedsam"),
    split=(
        "By scan; numbers below 500 are CT, the others MR (`domain`). The official validation scans have "
        "labels and become test cases, as in Hermes; the official test scans have none."
    ),
)


def convert(source: Path, target: Path) -> None:
    """Take images and labels as they are, under nnU-Net's names."""
    convert_part(CARD, source, target)


def convert_part(
    card: Card,
    source: Path,
    target: Path,
    *,
    only: str | None = None,
    values: Mapping[int, int] | None = None,
) -> None:
    """Take the scans of one domain, or of both, under nnU-Net's names.

    Args:
        only: ``CT`` or ``MR``; cases then have no domain.
        values: as in `dataset_conversion.writing.Case`.
    """
    root = source / "amos22" if (source / "amos22").is_dir() else source
    cases: list[Case] = []
    for part in ("Tr", "Va", "Ts"):
        labels = by_pattern(root / f"labels{part}", r"amos_(\d+)\.nii(?:\.gz)?")
        for number, image in by_pattern(root / f"images{part}", r"amos_(\d+)\.nii(?:\.gz)?").items():
            domain = "CT" if int(number) < 500 else "MR"
            if only not in (None, domain):
                continue
            label = labels.get(number)
            if label is None and part != "Ts":
                raise DataError(f"{image}: has no label in labels{part}/; complete the download.")
            cases.append(
                Case(
                    id=f"amos_{int(number):04d}",
                    images=(image,),
                    label=label,
                    values=values,
                    domain=domain if only is None else None,
                    is_test=part != "Tr",
                )
            )
    require(source, bool(cases), "imagesTr/ and labelsTr/ with amos_XXXX.nii.gz")
    write_dataset(card, cases, target, source=source)
