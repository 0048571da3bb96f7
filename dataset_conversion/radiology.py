"""Folders of radiology pictures without labels, for pre-training."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from dataset_conversion.card import Card
from dataset_conversion.listing import files_of, folders_below, require
from dataset_conversion.pictures import PICTURES, is_coloured, read_picture
from dataset_conversion.writing import Case, in_threads, write_dataset
from medplan.errors import DataError

CARD = Card(
    name="Radiology",
    title="Radiology pictures without labels (MedPix, VQA-RAD or any folder)",
    about="Pictures of mixed modality and size out of publications and teaching files.",
    modality="grey or colour pictures, mixed modalities",
    home="any",
    licence="differs from picture to picture",
    layout=("pictures (.png, .jpg, .bmp, .tif) in a folder, at any depth",),
    channels=("grey",),
    labels={},
    num_cases="any",
    serves=("densemp",),
    split="All cases are unlabelled and serve for pre-training.",
)


def convert(source: Path, target: Path) -> None:
    """Write every readable picture as .png, see `convert_pictures`."""
    convert_pictures(CARD, source, target, folder=source)


def convert_pictures(card: Card, source: Path, target: Path, *, folder: Path) -> None:
    """Write the pictures below `folder` as .png: grey if all are grey, else RGB.

    Files that are no readable pictures are left out, counted and named in the notes of the dataset.
    """
    files = sorted(path for each in folders_below(folder) for path in files_of(each))
    pictures = [path for path in files if path.suffix.lower() in PICTURES]
    require(folder, bool(pictures), f"pictures ({', '.join(PICTURES)})")
    kinds = dict(zip(pictures, in_threads(_kind, pictures, label=f"checking {card.name}"), strict=True))
    readable = [path for path in pictures if kinds[path] is not None]
    require(folder, bool(readable), "at least one readable picture")
    coloured = any(kinds.values())
    read: Callable[[Path], npt.NDArray[Any]] = partial(read_picture, coloured=coloured)
    cases = (Case(id=_id(path.relative_to(folder)), images=(partial(read, path),)) for path in readable)
    broken = [path for path in pictures if kinds[path] is None]
    others = [path for path in files if path not in kinds]
    notes = []
    for left_out, what in ((broken, "could not be read as pictures"), (others, "are not pictures")):
        if left_out:
            first = [path.relative_to(folder).as_posix() for path in left_out[:3]]
            notes.append(
                f"{len(left_out)} file(s) {what} and were left out, for instance {', '.join(first)}."
            )
    channels = ("R", "G", "B") if coloured else None
    write_dataset(card, cases, target, source=source, channels=channels, ending=".png", notes=notes)


def _kind(path: Path) -> bool | None:
    """Return whether a picture is coloured, or None if it cannot be read to its end."""
    try:
        read_picture(path)
        return is_coloured(path)
    except DataError:
        return None


def _id(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", path.with_suffix("").as_posix()).strip("_")
