"""ADNI: T1 MR of ageing brains, through FreeSurfer."""

from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.freesurfer import LAYOUT, convert_subjects

CARD = Card(
    name="ADNI",
    title="Alzheimer's Disease Neuroimaging Initiative, FreeSurfer output",
    about="T1 MR of the brain in normal ageing, mild impairment and Alzheimer's disease.",
    modality="MR (T1)",
    home="adni.loni.usc.edu",
    licence="ADNI data use agreement",
    layout=(LAYOUT,),
    channels=("T1 MR",),
    labels={},
    num_cases="thousands of visits; papers take a few hundred",
    serves=("bijros",),
    split="By subject; one visit per subject; Bi-JROS labels one case and publishes no lists.",
    label_groups=("oasis14",),
)


def convert(source: Path, target: Path) -> None:
    """Put norm.mgz and aseg.mgz into NIfTI, grid and values unchanged."""
    convert_subjects(CARD, source, target)
