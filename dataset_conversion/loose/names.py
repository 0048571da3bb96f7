"""What the name of a file says: which case it belongs to, which channel it is, whether it is a label."""

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from medplan.data.formats import stem_of
from medplan.plan.modality import WORDS

__all__ = [
    "CHANNELS",
    "Found",
    "class_in",
    "class_in_folder",
    "found",
    "identifier",
    "less",
    "numbered",
    "path_identifier",
    "shown",
]

LABEL_WORDS = frozenset(
    "seg segs segm segmentation segmentations label labels labelstr labelmap mask masks msk gt ground truth "
    "groundtruth ann anns annotation annotations annotated roi rois contour contours segmentierung maske "
    "masken masque masques mascara segmentacion".split()
)
NEUTRAL_WORDS = frozenset(
    "image images imagestr img imgs scan scans original volume volumes anat rawdata dicom dcm nii "
    "nifti".split()
)
"""Words of folders and files that say nothing about the case."""
CHANNELS = tuple(
    dict.fromkeys(
        [word for modality, words in WORDS.items() if modality != "RGB" for word in words.split()]
        + "pt ctres cbf cbv mtt tmax ttp dce stir t2star t1post t1pre t1wce t1km t2fs t2flair".split()
    )
)
"""Words that say how a scan was taken, in the order in which channels are numbered."""
ONLY_LAST = frozenset({"pt", "pd", "us", "hu"})
"""Of these words that may also stand for a patient, a disease or a place, where they do not end a name."""
SHOWN = {"ctres": "CT", "pt": "PET"}
FURTHER = frozenset(
    "pre post gd ce contrast native tra sag cor ax axial sagittal coronal fs arterial art venous portal "
    "delayed nac ac".split()
)
"""Words that tell channels apart where they stand beside one of `CHANNELS`."""
VERSIONS = frozenset("v ver version r copy old new final corrected manual auto pred prediction".split())
"""Words that tell label files of the same structures apart."""
PEOPLE = re.compile(r"by|(rater|reader|observer|annotator|expert)s?[a-z]?")
"""Words after which a person is named."""


Word = tuple[tuple[int, str], str]
"""Where and how a word is written, and in lower case."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A scan or label file, or a DICOM folder, and what its name says.

    Attributes:
        path: of the file or folder.
        parts: folders and stem, relative to the source.
        folders, stem: words that are neither of labels nor neutral, channels included, lower case.
        channel: words of the channel, lower case, in order.
        is_label: whether it is a label file, not a scan.
    """

    path: Path
    parts: tuple[str, ...]
    folders: tuple[str, ...]
    stem: tuple[str, ...]
    channel: tuple[str, ...]
    is_label: bool

    @property
    def words(self) -> tuple[str, ...]:
        return self.folders + self.stem

    @property
    def key(self) -> tuple[str, ...]:
        """The words that say which case it is."""
        return less(self.words, self.channel)

    @property
    def stem_key(self) -> tuple[str, ...]:
        return less(self.stem, self.channel)


def found(path: Path, source: Path, *, depth: int = 0) -> Found:
    """Split the name of a file into words: some call it a label or a channel, others are neutral.

    Args:
        depth: how many folders are common to all files, which make no labels of them.
    """
    relative = path.relative_to(source)
    stem = relative.name if path.is_dir() else re.sub(r"(?i)\.(dcm|ima)$", "", stem_of(path))
    parts = (*relative.parts[:-1], stem)
    # Of a folder only a name that says nothing else makes labels of its files: 'Seg study 7/' is a patient.
    words = [_fine(part) for part in parts]
    is_label = bool(LABEL_WORDS & set(words[-1])) or any(
        set(part) <= LABEL_WORDS for part in words[depth:-1] if part
    )
    channel = tuple(dict.fromkeys(word for part in parts for word in _channel_words(part)))
    kept = [tuple(word for _, word in _said(part, channel)) for part in parts]
    folders = tuple(word for part in kept[:-1] for word in part)
    return Found(path=path, parts=parts, folders=folders, stem=kept[-1], channel=channel, is_label=is_label)


def numbered(file: Found) -> Found | None:
    """Return a file called CASE_0001 with that number as its channel, as nnU-Net has it; else None."""
    match = re.fullmatch(r"(.+)_(\d{4})", file.parts[-1])
    if match is None or file.stem[-1:] != (match[2],):
        return None
    return replace(file, stem=(*file.stem[:-1], f"_{match[2]}"), channel=(f"_{match[2]}",))


def identifier(file: Found, *, whole: bool = True) -> str:
    """Return a case id of letters, digits, ``-`` and ``_``: the path without neutral folders and what folders
    and file name repeat, and, if not `whole`, without the words of the channel.
    """
    parts = list(file.parts)
    if not whole:
        # _0001 ends the name; other words are cut out wherever they are.
        parts = [part.removesuffix("".join(file.channel)) for part in parts]
        parts = [
            re.sub(r"[^\W_]+", lambda m: "" if m[0].lower() in file.channel else m[0], part) for part in parts
        ]
    names = [_plain(part).strip("_-") for part in parts if set(_fine(part)) - NEUTRAL_WORDS]
    kept = [name for n, name in enumerate(names) if name and not _repeated(name, names[n + 1 :])]
    return "_".join(kept) or path_identifier(file)


def _repeated(name: str, following: Sequence[str]) -> bool:
    """Whether the name of a folder begins a later one, or is a part of it that is no mere number."""
    start = r"(^|[-_])" if re.search("[A-Za-z]", name) and len(name) > 3 else "^"
    return any(re.search(rf"(?i){start}{name}([-_]|$)", later) for later in following)


def path_identifier(file: Found) -> str:
    """Return a case id that leaves nothing of the path out."""
    return _plain("/".join(file.parts)).strip("_") or "scan"


def shown(channel: Sequence[str], file: Found) -> str:
    """Return the name of a channel: ``T1`` for t1, ``T1w`` where a file spells it so, ``channel 1``."""
    spelled = {word.lower(): word for part in file.parts for word in re.findall(r"[^\W_]+", part)} | SHOWN
    words = [spelled.get(word, word) for word in channel]
    words = [word.upper() if word in CHANNELS else word for word in words]
    return " ".join(f"channel {int(word[1:])}" if word[0] == "_" else word for word in words) or "scan"


def class_in(label: Found, scan: Found, everywhere: Collection[str] = ()) -> str:
    """Return what the name of a label says beyond that of its scan: ``liver`` of ``p1_liver_mask``.

    Words that are `everywhere` in the names of scans say nothing. Words that tell versions and raters apart
    name no class; an empty string if nothing else is left.
    """
    rest = [pair for pair in _said(label.parts[-1], label.channel) if pair[1] not in label.channel]
    for key in (scan.key, scan.stem_key, less(scan.key, everywhere), less(scan.stem_key, everywhere)):
        words = tuple(word for _, word in rest)
        if key and words[: len(key)] == key:
            rest = rest[len(key) :]
        elif key and key == scan.stem_key and words[-len(key) :] == key:
            rest = rest[: -len(key)]
    return _named(rest)


def class_in_folder(label: Found, scan: Found) -> str:
    """Return what the folders of a label say beyond the path of its scan: of ``labels/liver/p1.nii.gz``."""
    there = {word for part in scan.parts for word in _fine(part)}
    folders = [pair for part in label.parts[:-1] for pair in _said(part, ())]
    return _named([pair for pair in folders if pair[1] not in there])


def _named(words: list[Word]) -> str:
    """Join words as they are written; those that were one ('L5') stay one."""
    kept = list(takewhile(lambda word: PEOPLE.fullmatch(word[1]) is None, words))
    kept = [word for word in kept if word[1] not in VERSIONS]
    if not any(word.isalpha() for _, word in kept):
        return ""
    places = dict.fromkeys(place for (place, _), _ in kept)
    return " ".join("".join(written for (where, written), _ in kept if where == place) for place in places)


def _fine(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+|\d+", text.lower())


def _channel_words(part: str) -> list[str]:
    words = re.findall(r"[^\W_]+", part.lower())
    words = [word for word in words[:-1] if word not in ONLY_LAST] + words[-1:]
    return (
        [word for word in words if word in CHANNELS or word in FURTHER] if set(words) & set(CHANNELS) else []
    )


def _said(part: str, channel: Sequence[str]) -> list[Word]:
    """Return the words of a part that say something: where and how they are written, and in lower case."""
    said: list[Word] = []
    for match in re.finditer(r"[^\W_]+", part):
        whole = match[0].lower() in channel
        for word in [match[0]] if whole else re.findall(r"[^\W\d_]+|\d+", match[0]):
            if whole or word.lower() not in LABEL_WORDS | NEUTRAL_WORDS:
                said.append(((match.start(), word), word.lower()))
    return said


def less(words: Sequence[str], others: Collection[str]) -> tuple[str, ...]:
    """Return the words that are not among others."""
    return tuple(word for word in words if word not in others)


def _plain(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text)
    # Accents fall away; letters of other scripts become their code, so that names stay apart.
    kept = (
        c if c.isascii() or not c.isalnum() else f"u{ord(c):x}" for c in plain if not unicodedata.combining(c)
    )
    return re.sub(r"[^A-Za-z0-9-]+", "_", "".join(kept))
