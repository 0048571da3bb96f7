"""Medical Segmentation Decathlon: any of its ten tasks."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dataset_conversion.card import Card
from dataset_conversion.listing import by_pattern, require
from dataset_conversion.volumes import Volume, read_nifti, shape_of
from dataset_conversion.writing import Case, write_dataset
from medplan.errors import DataError

CARD = Card(
    name="MSD",
    title="Medical Segmentation Decathlon (any TaskXX folder)",
    about=(
        "Ten tasks: brain tumour, heart, liver, hippocampus, prostate, lung, pancreas, hepatic vessel, "
        "spleen, colon."
    ),
    modality="CT or MR, as the task's dataset.json says",
    home="medicaldecathlon.com",
    licence="CC BY-SA 4.0",
    layout=(
        "TaskXX_Name/ with dataset.json, imagesTr/, labelsTr/ and imagesTs/; the channels of 4-D images "
        "become one file each",
    ),
    channels=(),
    labels={},
    num_cases="20 to 484 labelled per task",
    serves=("hermes", "supervised"),
    split="By case; the labels of imagesTs are not public, its images become test cases.",
)


def convert(source: Path, target: Path) -> None:
    """Take images and labels as they are, under nnU-Net's names; 4-D images are split into channels."""
    path = source / "dataset.json"
    require(source, path.is_file(), "dataset.json of a Decathlon task, with imagesTr/ and labelsTr/")
    try:
        described = json.loads(path.read_text())
        channels = [name for _, name in sorted(described["modality"].items())]
        labels = {name: int(value) for value, name in described["labels"].items() if int(value) != 0}
    except (json.JSONDecodeError, KeyError, AttributeError, ValueError) as error:
        raise DataError(f"{path}: expected 'modality' and 'labels' of a Decathlon task ({error}).") from None
    write_dataset(
        CARD, cases_of(source, len(channels)), target, source=source, labels=_tidy(labels), channels=channels
    )


def cases_of(source: Path, num_channels: int = 1) -> list[Case]:
    """Return the cases of imagesTr/labelsTr/imagesTs, or of plain images/ and labels/.

    Raises: DataError if there are none, or if an image has another number of channels.
    """
    pattern = r"(.+)\.nii(?:\.gz)?"
    cases = []
    for images, labels in (("imagesTr", "labelsTr"), ("images", "labels"), ("imagesTs", "labelsTs")):
        known = by_pattern(source / labels, pattern)
        for key, path in by_pattern(source / images, pattern).items():
            parts = _channels(path, num_channels)
            cases.append(Case(id=key, images=parts, label=known.pop(key, None), is_test=images == "imagesTs"))
        if known:
            raise DataError(f"{source / labels}: the label '{next(iter(known))}' has no image in {images}/.")
    require(source, bool(cases), "imagesTr/ and labelsTr/ with .nii.gz files")
    return cases


def _channels(path: Path, number: int) -> tuple[Any, ...]:
    shape = shape_of(path)
    found = shape[3] if len(shape) > 3 else 1
    if found != number:
        raise DataError(
            f"{path}: has {found} channel(s), expected {number}; is it the dataset.json of this task?"
        )
    return (path,) if len(shape) == 3 else tuple(partial(_channel, path, index) for index in range(number))


def _channel(path: Path, index: int) -> Volume:
    volume = read_nifti(path)
    return Volume(voxels=volume.voxels[..., index], affine=volume.affine)


def _tidy(labels: Mapping[str, int]) -> dict[str, int]:
    """Return labels in the order of their values."""
    return dict(sorted(labels.items(), key=lambda item: item[1]))
