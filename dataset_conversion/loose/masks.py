"""Label maps that are pictures: masks of 0 and 255, lossy ones, numbers, palettes and colours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medplan.data import pictures
from medplan.errors import DataError

__all__ = ["Decoder", "Summary", "decoder_of", "summary"]

FEW = 40
"""Numbers or colours of a label picture; more are the noise of compression, or no labels."""
EXTREMES = 32
SHARE_OF_EXTREMES = 0.97
"""Of the pixels of a two-valued mask so many lie within `EXTREMES` of 0 or 255, however it was compressed."""
WHITES = {0: 0, 1: 1, 255: 1}
"""Masks of 0 and 255, of 0 and 1, and of both kinds in one folder."""
COLOURS = {
    0x000000: "black",
    0xFFFFFF: "white",
    0xFF0000: "red",
    0x00FF00: "green",
    0x0000FF: "blue",
    0xFFFF00: "yellow",
    0xFF00FF: "magenta",
    0x00FFFF: "cyan",
}

Colours = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a mask picture holds.

    Attributes:
        path: of the picture.
        values: grey values, or colours as 0xRRGGBB; empty if they are more than `FEW`.
        is_coloured: whether they are colours.
        is_two_valued: whether it is black and white but for compression.
        looks_like_labels: whether a picture of this content, whatever its name, is a label map.
    """

    path: Path
    values: frozenset[int]
    is_coloured: bool
    is_two_valued: bool
    looks_like_labels: bool


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """How the pictures of a dataset become numbers.

    Attributes:
        threshold: grey values above it are 1, others 0; None if `table` says it.
        table: what each grey value or colour becomes.
        names: of numbers, where colours have some.
    """

    threshold: int | None
    table: Mapping[int, int]
    names: Mapping[int, str]

    def read(self, path: Path) -> npt.NDArray[np.int32]:
        """Return the numbers (Y, X) of a mask picture."""
        colours, is_coloured = _read(path)
        if self.threshold is not None:
            grey = colours if not is_coloured else (colours >> 16) + ((colours >> 8) & 255) + (colours & 255)
            return (grey > self.threshold * (3 if is_coloured else 1)).astype(np.int32)
        if not is_coloured and any(value > 255 for value in self.table):
            colours = colours * 0x010101
        values, places = np.unique(colours, return_inverse=True)
        numbers = np.array([self.table.get(int(value), int(value)) for value in values], dtype=np.int32)
        return numbers[places.reshape(colours.shape)]


def summary(path: Path) -> Summary:
    """Look at one picture. Raises: DataError if it cannot be read."""
    colours, is_coloured = _read(path)
    values = np.unique(colours)
    few = len(values) <= FEW
    parts = [(colours >> shift) & 255 for shift in (16, 8, 0)] if is_coloured else [colours]
    dark = np.logical_and.reduce([part < EXTREMES for part in parts])
    bright = np.logical_and.reduce([(part > 255 - EXTREMES) & (part < 256) for part in parts])
    extreme = (dark | bright).mean() >= SHARE_OF_EXTREMES
    one, other = colours[1:], colours[:-1]
    inside = (one != values[0]) & (other != values[0])
    closed = few and (len(values) <= 2 or (inside.any() and (one == other)[inside].mean() >= 0.7))
    return Summary(
        path=path,
        values=frozenset(int(value) for value in values) if few else frozenset(),
        is_coloured=is_coloured,
        is_two_valued=bool(extreme),
        looks_like_labels=bool(closed or (extreme and dark.any())),
    )


def decoder_of(found: Sequence[Summary], known: Mapping[str, int]) -> Decoder:
    """Find out how all mask pictures of a dataset are to be read.

    Args:
        known: numbers that names of colours had before; they stay.

    Raises: DataError naming a picture that is no label map.
    """
    values = frozenset().union(*(each.values for each in found))
    lossy = [each for each in found if not each.values]
    is_coloured = any(each.is_coloured for each in found)
    # Edges that a picture editor smoothed, or small lossy masks: a few greys beside black and white.
    smoothed = not is_coloured and not values <= WHITES.keys() and max(values, default=0) > 255 - EXTREMES
    smoothed = smoothed and all(each.is_two_valued for each in found)
    if lossy or len(values) > FEW or smoothed:
        odd = next((each for each in found if not each.is_two_valued), None)
        if odd is not None:
            raise DataError(
                f"{odd.path}: it holds more than {FEW} different values, or other ones than further masks; "
                "this is no label picture. Save masks as PNG, which keeps values, or move the file away."
            )
        return Decoder(threshold=127, table={}, names={})
    if not is_coloured:
        table = WHITES if values <= WHITES.keys() else {value: value for value in values}
        return Decoder(threshold=None, table=table, names={})
    colours = sorted({v if each.is_coloured else v * 0x010101 for each in found for v in each.values} - {0})
    table, names = {0: 0}, dict[int, str]()
    for colour in colours:
        name = COLOURS.get(colour, f"#{colour:06x}")
        taken = {*known.values(), *names}
        table[colour] = known.get(name) or next(n for n in range(1, 2 + len(taken)) if n not in taken)
        names[table[colour]] = name
    return Decoder(threshold=None, table=table, names=names)


def _read(path: Path) -> tuple[Colours, bool]:
    """Return grey values or palette numbers (Y, X), or colours as 0xRRGGBB and True."""
    planes = pictures.read(path, label=True)[:, 0].astype(np.int64)
    if len(planes) == 1:
        return planes[0], False
    if (planes == planes[0]).all():
        return planes[0], False
    return (planes[0] << 16) + (planes[1] << 8) + planes[2], True
