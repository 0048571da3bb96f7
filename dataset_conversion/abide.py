"""ABIDE: T1 MR of the brain, through FreeSurfer."""

from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.freesurfer import LAYOUT, convert_subjects

CARD = Card(
    name="ABIDE",
    title="Autism Brain Imaging Data Exchange, FreeSurfer output",
    about="T1 MR of the brain of people with autism and of controls, many sites.",
    modality="MR (T1)",
    home="fcon_1000.projects.nitrc.org/indi/abide",
    licence="CC BY-NC-SA",
    layout=(LAYOUT,),
    channels=("T1 MR",),
    labels={},
    num_cases="1112 in ABIDE I",
    serves=("bijros",),
    split="By subject; Bi-JROS labels one case and publishes no lists.",
    label_groups=("oasis14",),
)


def convert(source: Path, target: Path) -> None:
    """Put norm.mgz and aseg.mgz into NIfTI, grid and values unchanged."""
    convert_subjects(CARD, source, target)
