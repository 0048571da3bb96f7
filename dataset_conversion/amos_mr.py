"""AMOS, the MR scans alone, with the thirteen organs that are drawn in them as in CT."""

from dataclasses import replace
from pathlib import Path

from dataset_conversion import amos, amos_ct

_ONLY_IN_CT = ("bladder", "prostate or uterus")

CARD = replace(
    amos_ct.CARD,
    name="AMOSMR",
    title="AMOS 2022, MR",
    about=(
        "The MR scans of AMOS, with 13 organs: bladder and prostate or uterus, labels 14 and 15, are drawn "
        "in few of them and become background, as in Hermes, which asks for neither in MR. "
        '`config.shared={"AMOSMR": "AMOSCT"}` lets both parts have the same tasks.'
    ),
    modality="MR",
    channels=("MR",),
    labels={organ: value for organ, value in amos.CARD.labels.items() if organ not in _ONLY_IN_CT},
    num_cases="60 with labels",
)


def convert(source: Path, target: Path) -> None:
    """Take images and labels under nnU-Net's names, without the organs that only CT is asked for."""
    kept = {value: value for value in (0, *CARD.labels.values())}
    left_out = {amos.CARD.labels[organ]: 0 for organ in _ONLY_IN_CT}
    amos.convert_part(CARD, source, target, only="MR", values={**kept, **left_out})
