"""AMOS, the CT scans alone."""

from dataclasses import replace
from pathlib import Path

from dataset_conversion import amos

CARD = replace(
    amos.CARD,
    name="AMOSCT",
    title="AMOS 2022, CT",
    about="The CT scans of AMOS, with 15 organs.",
    modality="CT",
    channels=("CT",),
    num_cases="300 with labels",
    serves=("hermes",),
    split=(
        "By scan. The official validation scans have labels and become test cases, as in Hermes; the "
        "official test scans have none."
    ),
)


def convert(source: Path, target: Path) -> None:
    """Take images and labels as they are, under nnU-Net's names."""
    amos.convert_part(CARD, source, target, only="CT")
