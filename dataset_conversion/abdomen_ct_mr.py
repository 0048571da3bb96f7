"""Abdominal CT and MR side by side: Synapse and CHAOS joined on the organs they share."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from dataset_conversion import chaos, synapse
from dataset_conversion.card import Card
from dataset_conversion.listing import folders_of, require
from dataset_conversion.volumes import Volume, read_nifti
from dataset_conversion.writing import Case, Source, write_dataset

CARD = Card(
    name="AbdomenCTMR",
    title="Synapse CT and CHAOS MR (T2-SPIR), four shared organs",
    about="Two unpaired sets of abdominal scans, for carrying labels from CT to MR or back.",
    modality="CT and MR (T2-SPIR)",
    home="www.synapse.org (syn3193805) and chaos.grand-challenge.org",
    licence="of the two parts",
    layout=("one folder that holds the source folders of `synapse` and of `chaos`, under any names",),
    channels=("MR or CT",),
    labels={"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4},
    num_cases="30 CT, 20 MR",
    serves=("sdmessenger",),
    split="By scan within each `domain` (CT, MR); the other nine organs of the CT become background.",
)

WINDOW_HU = (-125, 275)
"""Of the CT: normalised case by case, as the MR is, soft tissue would else be next to nothing between air and
bone."""

_FROM_SYNAPSE = {0: 0, 6: 1, 2: 2, 3: 3, 1: 4, **dict.fromkeys((4, 5, 7, 8, 9, 10, 11, 12, 13), 0)}


def convert(source: Path, target: Path) -> None:
    """Write both sets under common label values, the CT in a window of soft tissue."""
    folders = (source, *folders_of(source))
    scans: list[Case] = [case for folder in folders for case in synapse.cases_of(folder)]
    mr = [case for folder in folders for case in chaos.cases_of(folder) if case.domain == "T2-SPIR"]
    require(source, bool(scans) and bool(mr), "one sub-folder with Synapse (CT) and one with CHAOS (MR)")
    cases = [
        replace(
            case,
            images=tuple(partial(_windowed, image) for image in case.images),
            domain="CT",
            patient=case.id,
            values=_FROM_SYNAPSE,
        )
        for case in scans
        if case.label
    ]
    cases += [replace(case, domain="MR") for case in mr]
    write_dataset(CARD, cases, target, source=source)


def _windowed(image: Source) -> Volume:
    volume = read_nifti(image) if isinstance(image, Path) else image()
    assert isinstance(volume, Volume)
    return Volume(voxels=np.clip(volume.voxels, *WINDOW_HU), affine=volume.affine)
