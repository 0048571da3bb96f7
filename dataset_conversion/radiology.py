"""Folders of radiology pictures without labels, such as ROCO, for pre-training."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from dataset_conversion.card import Card
from dataset_conversion.listing import require
from dataset_conversion.pictures import PICTURES, is_coloured, read_picture
from dataset_conversion.writing import Case, write_dataset
from medplan.errors import DataError

CARD = Card(
    name="Radiology",
    title="Radiology pictures without labels (ROCO, MedPix, VQA-RAD or any folder)",
    about="Pictures of mixed modality and size out of publications and teaching files.",
    modality="grey or colour pictures, mixed modalities",
    home="github.com/razorx89/roco-dataset",
    licence="differs from picture to picture",
    layout=(
        "pictures (.png, .jpg, .bmp, .tif) in a folder, at any depth; for ROCO name data/train/radiology",
    ),
    channels=("grey",),
    labels={},
    num_cases="about 65400 in ROCO's training part",
    serves=("densemp",),
    split="All cases are unlabelled and serve for pre-training.",
)


def convert(source: Path, target: Path) -> None:
    """Write every readable picture as .png: grey if all are grey, else RGB. What is left out is counted and
    named.
    """
    files = sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith("."))
    pictures = [path for path in files if path.suffix.lower() in PICTURES]
    require(source, bool(pictures), f"pictures ({', '.join(PICTURES)})")
    readable: list[tuple[Path, bool]] = []
    broken: list[Path] = []
    for path in pictures:
        try:
            read_picture(path)
            readable.append((path, is_coloured(path)))
        except DataError:
            broken.append(path)
    require(source, bool(readable), "at least one readable picture")
    coloured = any(colour for _, colour in readable)
    read: Callable[[Path], npt.NDArray[Any]] = partial(read_picture, coloured=coloured)
    cases = (Case(id=_id(path.relative_to(source)), images=(partial(read, path),)) for path, _ in readable)
    notes = []
    for left_out, what in (
        (broken, "could not be read as pictures"),
        (set(files) - set(pictures), "are not pictures"),
    ):
        if left_out:
            first = sorted(path.relative_to(source).as_posix() for path in left_out)[:3]
            notes.append(
                f"{len(left_out)} file(s) {what} and were left out, for instance {', '.join(first)}."
            )
    write_dataset(
        CARD,
        cases,
        target,
        source=source,
        channels=("R", "G", "B") if coloured else None,
        ending=".png",
        notes=notes,
    )


def _id(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", path.with_suffix("").as_posix()).strip("_")
