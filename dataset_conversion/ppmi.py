"""PPMI: T1 MR in Parkinson's disease, through FreeSurfer."""

from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.freesurfer import LAYOUT, convert_subjects

CARD = Card(
    name="PPMI",
    title="Parkinson's Progression Markers Initiative, FreeSurfer output",
    about="T1 MR of the brain of people with Parkinson's disease and of controls.",
    modality="MR (T1)",
    home="www.ppmi-info.org",
    licence="PPMI data use agreement",
    layout=(LAYOUT,),
    channels=("T1 MR",),
    labels={},
    num_cases="hundreds of subjects",
    serves=("bijros",),
    split="By subject; one visit per subject; Bi-JROS labels one case and publishes no lists.",
    label_groups=("oasis14",),
)


def convert(source: Path, target: Path) -> None:
    """Put norm.mgz and aseg.mgz into NIfTI, grid and values unchanged."""
    convert_subjects(CARD, source, target)
