"""Synapse: the abdominal CT of the BTCV challenge ("Beyond the Cranial Vault")."""

from functools import partial
from pathlib import Path

import numpy as np

from dataset_conversion.card import Card
from dataset_conversion.listing import by_pattern, choose, pairs, require
from dataset_conversion.pictures import read_picture
from dataset_conversion.volumes import Volume, affine_of, read_nifti
from dataset_conversion.writing import Case, write_dataset
from medplan.errors import DataError


def _numbers(*numbers: int) -> tuple[str, ...]:
    return tuple(f"img{number:04d}" for number in numbers)


CARD = Card(
    name="Synapse",
    title="BTCV abdomen (Synapse multi-organ, Beyond the Cranial Vault)",
    about="Portal-venous CT of the abdomen with 13 labelled organs.",
    modality="CT",
    home="www.synapse.org (syn3193805)",
    licence="on registration with Synapse",
    layout=(
        "the challenge's own: RawData/Training/{img,label}/{img,label}XXXX.nii.gz and RawData/Testing/img/, "
        "also with Training/ and Testing/, or img/ and label/, at the top",
        "as prepared for few-shot work (SABS): nii/label_N.nii.gz and png/img/image_SABS_N_sliceKKK.png, "
        "one 8-bit slice each; HU = value / 255 * 400 - 125. N counts the training scans in order, so N = 0 "
        "is img0001 and N = 10 is img0021. The labels' headers have the wrong sign for front and back; it "
        "is put right in both",
    ),
    channels=("CT",),
    labels={
        "spleen": 1,
        "right kidney": 2,
        "left kidney": 3,
        "gallbladder": 4,
        "oesophagus": 5,
        "liver": 6,
        "stomach": 7,
        "aorta": 8,
        "inferior vena cava": 9,
        "portal and splenic veins": 10,
        "pancreas": 11,
        "right adrenal gland": 12,
        "left adrenal gland": 13,
    },
    num_cases="30 with labels, 20 for testing without",
    serves=("sdmessenger", "densemp", "hermes", "imedsam"),
    split=(
        "By scan. The lists of the first release of S&D Messenger leak test scans into training; not offered."
    ),
    published_splits={
        "sdmessenger_20": {
            "labelled": _numbers(9, 21, 25, 34),
            "unlabelled": _numbers(2, 3, 4, 5, 6, 10, 22, 23, 24, 26, 28, 31, 32, 35, 36, 38, 40),
            "test": _numbers(8, 27, 29, 33, 37, 39),
        }
    },
)

_SCANS = (*range(1, 11), *range(21, 41))


def convert(source: Path, target: Path) -> None:
    """Take the scans as they are, or stack 8-bit slices into volumes in Hounsfield units."""
    cases = cases_of(source)
    require(source, bool(cases), "RawData/Training/{img,label}, or nii/label_N.nii.gz with png/img/")
    write_dataset(CARD, cases, target, source=source)


def cases_of(source: Path) -> list[Case]:
    """Return the cases in either layout; an empty list if there are none."""
    prepared = by_pattern(source / "nii", r"label_(\d+)\.nii(?:\.gz)?")
    if prepared:
        return [_prepared_case(source, int(number), path) for number, path in prepared.items()]
    training = choose(source, "RawData/Training", "Training", ".") or source
    images = by_pattern(training / "img", r"img(\d+)\.nii(?:\.gz)?")
    found = pairs(images, by_pattern(training / "label", r"label(\d+)\.nii(?:\.gz)?"), where=training)
    cases = [Case(id=f"img{int(n):04d}", images=(image,), label=label) for n, (image, label) in found.items()]
    testing = choose(source, "RawData/Testing", "Testing")
    tests = by_pattern(testing / "img", r"img(\d+)\.nii(?:\.gz)?") if testing else {}
    return cases + [Case(id=f"img{int(n):04d}", images=(image,), is_test=True) for n, image in tests.items()]


def _prepared_case(source: Path, number: int, label: Path) -> Case:
    if number >= len(_SCANS):
        raise DataError(
            f"{label}: expected a number from 0 to {len(_SCANS) - 1}; this is not the prepared BTCV."
        )
    image = partial(_stacked, source / "png" / "img", number, label)
    return Case(id=_numbers(_SCANS[number])[0], images=(image,), label=partial(_corrected, label))


def _corrected(path: Path) -> Volume:
    """Return the label with the affine that its array needs: right to left, back to front, upwards."""
    volume = read_nifti(path)
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0).tolist()
    return Volume(
        voxels=volume.voxels, affine=affine_of(spacing, axes="LAS", origin_mm=volume.affine[:3, 3].tolist())
    )


def _stacked(folder: Path, number: int, label: Path) -> Volume:
    pattern = rf"image_SABS_{number}_slice(\d+)\.png"
    slices = by_pattern(folder, pattern) if folder.is_dir() else {}
    grid = _corrected(label)
    wanted = list(range(grid.voxels.shape[2]))
    if sorted(map(int, slices)) != wanted:
        raise DataError(
            f"{folder}: expected image_SABS_{number}_slice000.png to slice{len(wanted) - 1:03d}.png as in "
            f"'{label.name}', found {len(slices)} of them; complete the download."
        )
    by_number = {int(key): path for key, path in slices.items()}
    grey = np.stack([read_picture(by_number[z], coloured=False) for z in wanted], axis=-1)
    return Volume(voxels=grey, affine=grid.affine, scale=(400 / 255, -125.0))
