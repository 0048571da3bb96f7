"""What FreeSurfer's numbers mean, and how its subject folders are laid out."""

from collections.abc import Iterable
from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.listing import folders_of, require
from dataset_conversion.writing import Case, write_dataset

__all__ = ["ASEG", "LAYOUT", "SEG4", "SEG35", "convert_subjects", "subjects"]

LAYOUT = (
    "FreeSurfer's subject folders: <subject>/mri/norm.mgz and aseg.mgz, or the two files in <subject>/, "
    "also as .nii.gz; a subject without aseg is unlabelled"
)

ASEG = {
    "Left-Cerebral-White-Matter": 2,
    "Left-Cerebral-Cortex": 3,
    "Left-Lateral-Ventricle": 4,
    "Left-Inf-Lat-Vent": 5,
    "Left-Cerebellum-White-Matter": 7,
    "Left-Cerebellum-Cortex": 8,
    "Left-Thalamus": 10,
    "Left-Caudate": 11,
    "Left-Putamen": 12,
    "Left-Pallidum": 13,
    "3rd-Ventricle": 14,
    "4th-Ventricle": 15,
    "Brain-Stem": 16,
    "Left-Hippocampus": 17,
    "Left-Amygdala": 18,
    "CSF": 24,
    "Left-Accumbens-area": 26,
    "Left-VentralDC": 28,
    "Left-vessel": 30,
    "Left-choroid-plexus": 31,
    "Right-Cerebral-White-Matter": 41,
    "Right-Cerebral-Cortex": 42,
    "Right-Lateral-Ventricle": 43,
    "Right-Inf-Lat-Vent": 44,
    "Right-Cerebellum-White-Matter": 46,
    "Right-Cerebellum-Cortex": 47,
    "Right-Thalamus": 49,
    "Right-Caudate": 50,
    "Right-Putamen": 51,
    "Right-Pallidum": 52,
    "Right-Hippocampus": 53,
    "Right-Amygdala": 54,
    "Right-Accumbens-area": 58,
    "Right-VentralDC": 60,
    "Right-vessel": 62,
    "Right-choroid-plexus": 63,
    "5th-Ventricle": 72,
    "WM-hypointensities": 77,
    "Left-WM-hypointensities": 78,
    "Right-WM-hypointensities": 79,
    "non-WM-hypointensities": 80,
    "Left-non-WM-hypointensities": 81,
    "Right-non-WM-hypointensities": 82,
    "Optic-Chiasm": 85,
    "CC_Posterior": 251,
    "CC_Mid_Posterior": 252,
    "CC_Central": 253,
    "CC_Mid_Anterior": 254,
    "CC_Anterior": 255,
}
"""Names and values of FreeSurfer's automatic subcortical segmentation, ``aseg.mgz``."""

_LEFT = (2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 26, 28, 30, 31)
_RIGHT = (41, 42, 43, 44, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60, 62, 63)
_NAMES = {value: name for name, value in ASEG.items()}

SEG35 = {_NAMES[value]: number for number, value in enumerate((*_LEFT, *_RIGHT), start=1)}
"""The 35 labels of neurite's OASIS (``aligned_seg35``), used where its ``seg35_labels.txt`` is missing."""

SEG4 = {"Cortex": 1, "Subcortical-Gray-Matter": 2, "White-Matter": 3, "CSF": 4}
"""The four labels of neurite's OASIS (``aligned_seg4``)."""


def convert_subjects(card: Card, source: Path, target: Path) -> None:
    """Put norm.mgz and aseg.mgz of every subject into NIfTI, grid and values unchanged."""
    cases = list(subjects(source))
    require(source, bool(cases), "<subject>/mri/norm.mgz with aseg.mgz, or <subject>/norm.mgz")
    write_dataset(card, cases, target, source=source, labels=ASEG, only_present=True)


def subjects(source: Path) -> Iterable[Case]:
    """Yield the FreeSurfer subjects below a folder: ``<subject>/[mri/]norm.mgz`` with ``aseg.mgz``.

    A subject without ``aseg.mgz`` is unlabelled. The files may also end in .nii.gz.
    """
    for folder in folders_of(source):
        for place in (folder / "mri", folder):
            image, label = _volume(place, "norm"), _volume(place, "aseg")
            if image is not None:
                yield Case(id=folder.name, images=(image,), label=label, patient=folder.name)
                break


def _volume(folder: Path, name: str) -> Path | None:
    files = (folder / f"{name}{ending}" for ending in (".mgz", ".nii.gz", ".nii"))
    return next((file for file in files if file.is_file()), None)
