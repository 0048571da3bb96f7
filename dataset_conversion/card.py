"""What is known about a public dataset before a single file of it is opened."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Card"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """Describes a public dataset and how its files are expected.

    Attributes:
        name: the usual name of the raw dataset, e.g. ``OASIS``.
        title: the name in full.
        about: what the images show, in a sentence or two.
        modality: CT, MR (with the sequence), PET or colour pictures.
        home: where to ask for the data.
        licence: a note on the terms of use, not checked with the publishers.
        layout: the accepted source folders, one sentence per layout.
        channels: channel names, in file order.
        labels: foreground label names and their values in the converted label files. Empty for pictures
            without labels and where the source itself brings the names.
        num_cases: how many cases the complete public dataset has, in words where that needs any.
        serves: the methods whose papers use it, or that it is of use for.
        split: how cases may be divided, and what must stay together.
        published_splits: named splits of papers, each a map from role (``labelled``, ``unlabelled``,
            ``validation``, ``test``) to case ids.
        label_groups: presets of ``--label-groups`` that papers have learned it in.
    """

    name: str
    title: str
    about: str
    modality: str
    home: str
    licence: str
    layout: tuple[str, ...]
    channels: tuple[str, ...]
    labels: Mapping[str, int]
    num_cases: str
    serves: tuple[str, ...]
    split: str
    published_splits: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    label_groups: tuple[str, ...] = ()
