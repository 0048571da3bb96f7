"""Makes cases that can be written of pictures and masks."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_conversion.loose.arrange import Arranged, Arrangement
from dataset_conversion.loose.cases import Made
from dataset_conversion.loose.classes import Classes, Drawn
from dataset_conversion.loose.labels import Overlaps, joined
from dataset_conversion.loose.masks import Decoder
from dataset_conversion.pictures import is_coloured, read_picture
from dataset_conversion.writing import Case, LeftOut, in_threads
from medplan.data.pictures import size

__all__ = ["picture_cases"]


def picture_cases(arrangement: Arrangement, classes: Classes, source: Path, decoder: Decoder | None) -> Made:
    """Make cases of pictures: RGB if any of them has colours, else grey; several channels are grey each.

    Raises: DataError if a picture cannot be read.
    """
    scans = [scan.path for case in arrangement.cases for scan in case.scans]
    names = tuple(name for _, name in arrangement.channels)
    coloured = len(names) == 1 and any(in_threads(is_coloured, scans, label="looking at pictures"))
    overlaps: dict[str, Overlaps] = {}
    cases = []
    for case in arrangement.cases:
        label = None
        if case.labels and decoder is not None:
            label = partial(_picture_label, case, classes.drawn[case.id], decoder, source, overlaps)
        images = tuple(partial(read_picture, scan.path, coloured=coloured) for scan in case.scans)
        cases.append(Case(id=case.id, images=images, label=label, is_open=True))
    if len(names) == 1:
        names = ("R", "G", "B") if coloured else ("grey",)
    return Made(cases=tuple(cases), channels=names, ending=".png", notes=(), overlaps=overlaps)


def _picture_label(
    case: Arranged, files: Sequence[Drawn], decoder: Decoder, source: Path, overlaps: dict[str, Overlaps]
) -> npt.NDArray[Any]:
    expected = size(case.scans[0].path)
    for drawn in files:
        if (found := size(drawn.path)) != expected:
            raise LeftOut(
                f"{drawn.path.relative_to(source).as_posix()}: has {found[1]} x {found[0]} pixels, its "
                f"picture {expected[1]} x {expected[0]}; the label is left out and the picture is unlabelled."
            )
    label, overlaps[case.id] = joined(files, lambda drawn: [(decoder.read(drawn.path), {})])
    return label.astype(np.uint8 if label.max(initial=0) < 256 else np.uint16)
