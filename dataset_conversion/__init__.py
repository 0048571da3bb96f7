"""Converters from the layout in which a public dataset is published to a raw dataset that medplan reads.

Every module here that is not listed in `_SHARED` is one converter: it has `CARD` and ``convert(source,
target)``. Adding a dataset is adding one file; nothing needs to be registered.
"""

import re
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from dataset_conversion.card import Card
from medplan.errors import UsageError, did_you_mean

__all__ = ["Card", "Converter", "find", "names"]

_SHARED = frozenset(
    {"card", "freesurfer", "listing", "overview", "pictures", "structseg", "volumes", "writing"}
)


class Converter(Protocol):
    """A converter module."""

    CARD: Card

    def convert(self, source: Path, target: Path) -> None:
        """Write the dataset in `source` as a raw dataset into the folder `target`.

        Raises: DataError if `source` is not laid out as the card says, or `target` holds something else.
        """


def names() -> tuple[str, ...]:
    """Return the names of all converters, sorted. Imports none of them."""
    files = Path(__file__).parent.glob("*.py")
    return tuple(
        sorted(file.stem for file in files if file.stem not in _SHARED and not file.stem.startswith("_"))
    )


def find(name: str) -> Converter:
    """Return the converter of that name; case, ``-``, ``_`` and blanks do not matter.

    Raises: UsageError that lists the known names, nearest first.
    """
    known = {_plain(each): each for each in names()}
    if _plain(name) not in known:
        hint = did_you_mean(_plain(name), known)
        raise UsageError(f"There is no converter '{name}'{hint}; there are: {', '.join(known.values())}.")
    return cast(Converter, import_module(f"{__name__}.{known[_plain(name)]}"))


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()
