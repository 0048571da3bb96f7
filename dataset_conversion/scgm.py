"""SCGM: grey matter of the spinal cord from four sites."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dataset_conversion.card import Card
from dataset_conversion.listing import by_pattern, folders_below, require
from dataset_conversion.volumes import Volume, read_nifti
from dataset_conversion.writing import Case, write_dataset
from medplan.errors import DataError

CARD = Card(
    name="SCGM",
    title="Spinal Cord Grey Matter Segmentation Challenge 2016",
    about="Axial MR of the cervical cord of 80 healthy people from four sites, each labelled by four raters.",
    modality="MR (T2*)",
    home="cmictig.cs.ucl.ac.uk/spinal-cord-grey-matter-segmentation-challenge",
    licence="research use, on registration",
    layout=(
        "siteN-scMM-image.nii.gz and siteN-scMM-mask-r1.nii.gz to -r4.nii.gz (1 grey, 2 white matter), in "
        "any folders below; the label is what more than half of the raters there say, else background",
    ),
    channels=("MR",),
    labels={"grey matter": 1, "white matter": 2},
    num_cases="40 with labels, 40 for testing without",
    serves=("sdmessenger",),
    split="By person, the site is the `domain`.",
    label_groups=("grey_matter",),
)


def convert(source: Path, target: Path) -> None:
    """Take the images as they are and join the raters' masks by majority."""
    cases: list[Case] = []
    for folder in folders_below(source):
        masks = by_pattern(folder, r"(site\d-sc\d+-mask-r\d)\.nii(?:\.gz)?")
        for key, image in by_pattern(folder, r"(site\d-sc\d+)-image\.nii(?:\.gz)?").items():
            own = [path for name, path in masks.items() if name.startswith(f"{key}-")]
            site = re.match(r"site\d", key)
            label = partial(_majority, own) if own else None
            domain = site[0] if site else None
            cases.append(Case(id=key, images=(image,), label=label, domain=domain, is_test=not own))
    require(source, bool(cases), "siteN-scMM-image.nii.gz with siteN-scMM-mask-r1.nii.gz")
    write_dataset(CARD, cases, target, source=source)


def _majority(masks: Sequence[Path]) -> Volume:
    volumes = [read_nifti(path) for path in masks]
    shapes = {volume.voxels.shape for volume in volumes}
    if len(shapes) > 1:
        raise DataError(f"{masks[0]}: the raters' masks differ in shape, {sorted(shapes)}; fetch them again.")
    votes = np.stack([np.rint(volume.voxels) for volume in volumes])
    odd = sorted(set(np.unique(votes).tolist()) - {0.0, 1.0, 2.0})
    if odd:
        raise DataError(f"{masks[0]}: the raters' masks hold values {odd[:5]}, expected 0, 1 and 2.")
    label = np.zeros(votes.shape[1:], dtype=np.uint8)
    for value in (1, 2):
        label[(votes == value).sum(axis=0) * 2 > len(votes)] = value
    return Volume(voxels=label, affine=volumes[0].affine)
