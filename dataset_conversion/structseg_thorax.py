"""StructSeg 2019, thorax: organs at risk in CT."""

from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.structseg import convert_part

_ORGANS = (
    "left lung",
    "right lung",
    "heart",
    "oesophagus",
    "trachea",
    "spinal cord",
)

CARD = Card(
    name="StructSegThorax",
    title="StructSeg 2019, thoracic organs at risk",
    about="Chest CT of patients with lung cancer, six organs.",
    modality="CT",
    home="structseg2019.grand-challenge.org",
    licence="research use, on registration",
    layout=(
        "Thoracic_OAR/N/data.nii.gz and label.nii.gz, N from 1 to 50; the order of the six names follows the "
        "challenge's list as remembered, look at one scan before relying on it",
    ),
    channels=("CT",),
    labels={organ: value for value, organ in enumerate(_ORGANS, start=1)},
    num_cases="50",
    serves=("hermes",),
    split="By case, one per patient.",
)


def convert(source: Path, target: Path) -> None:
    """Take images and labels as they are, under nnU-Net's names."""
    convert_part(CARD, source, target, part="Thoracic_OAR", prefix="thorax")
