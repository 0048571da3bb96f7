"""StructSeg 2019, head and neck: organs at risk in CT."""

from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.structseg import convert_part

_ORGANS = (
    "left eye",
    "right eye",
    "left lens",
    "right lens",
    "left optic nerve",
    "right optic nerve",
    "optic chiasm",
    "pituitary",
    "brain stem",
    "left temporal lobe",
    "right temporal lobe",
    "spinal cord",
    "left parotid gland",
    "right parotid gland",
    "left inner ear",
    "right inner ear",
    "left middle ear",
    "right middle ear",
    "left temporomandibular joint",
    "right temporomandibular joint",
    "left mandible",
    "right mandible",
)

CARD = Card(
    name="StructSegHead",
    title="StructSeg 2019, head and neck organs at risk",
    about="CT of patients with nasopharyngeal cancer, 22 organs.",
    modality="CT",
    home="structseg2019.grand-challenge.org",
    licence="research use, on registration",
    layout=("HaN_OAR/N/data.nii.gz and label.nii.gz, N from 1 to 50",),
    channels=("CT",),
    labels={organ: value for value, organ in enumerate(_ORGANS, start=1)},
    num_cases="50",
    serves=("hermes",),
    split="By case, one per patient.",
)


def convert(source: Path, target: Path) -> None:
    """Take images and labels as they are, under nnU-Net's names."""
    convert_part(CARD, source, target, part="HaN_OAR", prefix="han")
