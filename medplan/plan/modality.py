"""What kind of scan a channel is: told by its name or the file format, else guessed from intensities."""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from medplan.plan.schema import Modality
from medplan.plan.statistics import Intensity

__all__ = ["Source", "mismatch", "modalities"]

Source = Literal["channel name", "file format", "intensities (a guess)"]

WORDS: dict[Modality, str] = {
    "CT": "ct cbct cect cta ncct hu",
    "MR": "mr mri mra t1 t1w t1c t1ce t1gd t1n t2 t2w t2f t2spir flair pd pdw dwi adc swi dti lge bssfp cine "
    "cinemri ssfp dixon mprage gre spir inphase outphase outofphase mp2rage space tof ktrans hbv",
    "PET": "pet suv fdg",
    "RGB": "rgb r g b red green blue",
    "other": "us ultrasound xray cxr microscopy oct",
}
NAMES: dict[str, Modality] = {word: modality for modality, words in WORDS.items() for word in words.split()}
HU_LOW, HU_HIGH = -200.0, 200.0


def modalities(
    channels: Sequence[str], *, is_pictures: bool, intensities: Sequence[Sequence[Intensity]]
) -> tuple[tuple[Modality, ...], tuple[Source, ...]]:
    """Return the modality of each channel and how it is known.

    Args:
        channels: names of the channels; words in them count, case does not (``T2 SPIR``, ``CT``).
        is_pictures: whether the files are 2-D pictures.
        intensities: per channel the statistics of the cases, which are only asked when the name says nothing.
    """
    found = [
        _from_name(name) or _from_format(len(channels), is_pictures) or _from_intensities(cases)
        for name, cases in zip(channels, intensities, strict=True)
    ]
    return tuple(modality for modality, _ in found), tuple(source for _, source in found)


def mismatch(modality: Modality, cases: Sequence[Intensity]) -> str | None:
    """Return a sentence if a channel that is called CT does not hold Hounsfield units."""
    if modality != "CT" or not cases or float(np.median([case.min for case in cases])) < -100.0:
        return None
    low, high = min(case.min for case in cases), max(case.max for case in cases)
    return (
        f"the channel is called CT, but its intensities reach from {low:g} to {high:g} and are no Hounsfield "
        "units; it is still treated as CT. Rename the channel if it should be normalised case by case."
    )


def _from_name(name: str) -> tuple[Modality, Source] | None:
    """Return what the words of a name say; words of several modalities (``MR or CT``) make it ``other``."""
    said = {NAMES[word] for word in re.split(r"[^a-z0-9]+", name.lower()) if word in NAMES}
    if not said:
        return None
    return (said.pop() if len(said) == 1 else "other"), "channel name"


def _from_format(num_channels: int, is_pictures: bool) -> tuple[Modality, Source] | None:
    if not is_pictures:
        return None
    return ("RGB" if num_channels == 3 else "grey"), "file format"


def _from_intensities(cases: Sequence[Intensity]) -> tuple[Modality, Source]:
    """CT: most cases reach below -200 and above 200. MR: no intensity is negative. Else other."""
    source: Source = "intensities (a guess)"
    if not cases:
        return "other", source
    low, high = (float(np.median([getattr(case, end) for case in cases])) for end in ("min", "max"))
    if low <= HU_LOW and high >= HU_HIGH:
        return "CT", source
    return ("MR" if min(case.min for case in cases) >= 0 else "other"), source
