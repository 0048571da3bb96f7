"""Whatever layout a dataset is brought into, converting it gives the dataset back."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from dataset_conversion.loose.grids import on_grid
from dataset_conversion.scans import convert
from dataset_conversion.volumes import Volume
from medplan.data.checks import check
from medplan.data.dataset import open_dataset
from tests.conversion.pieces import GRIDS, SHAPE, Array, itk, nifti, picture, scan, series

CASES = ("p1", "p2", "p10")
KINDS = ("t1", "t2", "flair")
ORGANS = ("kidney left", "liver", "spleen")
SIZE = (24, 30)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def areas(seed: int, num: int) -> Array:
    """Return a label of closed areas, which do not touch the border."""
    drawn = np.zeros(SHAPE, dtype="uint8")
    for value in range(1, num + 1):
        drawn[2 * value - 1 : 2 * value + 1, 1 : 3 + seed % 2, 1:4] = value
    return drawn


IMAGES = {case: [scan(10 * n + k) for k in range(len(KINDS))] for n, case in enumerate(CASES)}
LABELS = {case: areas(n, len(ORGANS)) for n, case in enumerate(CASES) if case != "p2"}
GRID_OF = dict(zip(CASES, GRIDS[1:], strict=False))


def channels_in(image: str, label: str, kinds: tuple[str, ...] = KINDS) -> Callable[[Path], None]:
    """Return what writes scans under one name pattern and labels under another."""

    def build(root: Path) -> None:
        for case in CASES:
            for number, kind in enumerate(kinds):
                nifti(root / image.format(case, kind), IMAGES[case][number], GRID_OF[case])
            if case in LABELS:
                nifti(root / label.format(case), LABELS[case], GRID_OF[case])

    return build


def frames(root: Path) -> None:
    for case in CASES:
        nifti(root / f"{case}.nii.gz", np.stack(IMAGES[case], axis=-1), GRID_OF[case])
        if case in LABELS:
            nifti(root / f"{case}_seg.nii.gz", LABELS[case], GRID_OF[case])


def dicom(root: Path) -> None:
    for case in CASES:
        for number, kind in enumerate(KINDS):
            names = [f"{z:03d}.dcm" for z in range(SHAPE[2])]
            series(root / case / f"DICOM {kind.upper()}", IMAGES[case][number], GRID_OF[case], names=names)
        if case in LABELS:
            nifti(root / case / "label.nii.gz", LABELS[case], GRID_OF[case])


def read_back(path: Path, case: str) -> Array:
    """Return voxels where they were: a DICOM series may lie with its last slice first."""
    image = nibabel.load(path)
    volume = Volume(voxels=np.asanyarray(image.dataobj), affine=image.affine)
    return on_grid(volume, SHAPE, GRID_OF[case]).voxels


NUMBERS = ("0000", "0001", "0002")
CHANNELS = {
    "brats": channels_in("{0}/{0}_{1}.nii.gz", "{0}/{0}_seg.nii.gz"),
    "brats_2023": channels_in("BraTS-{0}/BraTS-{0}-{1}.nii.gz", "BraTS-{0}/BraTS-{0}-seg.nii.gz"),
    "flat": channels_in("{}_{}.nii", "{}_mask.nii"),
    "folder_per_case": channels_in("Patient {}/{}.nii.gz", "Patient {}/GT.nii.gz"),
    "folder_per_channel": channels_in("{1}/{0}.nii.gz", "labels/{0}.nii.gz"),
    "bids": channels_in(
        "sub-{0}/anat/sub-{0}_{1}.nii.gz", "derivatives/sub-{0}/anat/sub-{0}_flair_label-x_mask.nii.gz"
    ),
    "study_in_folder": channels_in("images/{0}/{0}_7_{1}.nii.gz", "labels/{0}_7.nii.gz"),
    "numbers": channels_in("imagesTr/{}_{}.nii.gz", "labelsTr/{}.nii.gz", NUMBERS),
    "unnamed_labels": channels_in("{0}/{1}.nii.gz", "{0}/x.nii.gz"),
    "frames": frames,
    "dicom": dicom,
}


@pytest.mark.parametrize("layout", CHANNELS)
def test_channels_come_together_from_every_layout(layout: str, tmp_path: Path) -> None:
    CHANNELS[layout](tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    assert check(dataset) == ()
    spelled = ("channel 0", "channel 1", "channel 2") if layout in ("numbers", "frames") else None
    assert dataset.channels == (spelled or ("T1", "T2", "FLAIR"))
    assert len(dataset.cases) == len(CASES)
    for found in dataset.cases:
        (name,) = (name for name in CASES if re.search(rf"{name}(_|$)", found.id))
        assert len(found.images) == len(KINDS)
        for path, voxels in zip(found.images, IMAGES[name], strict=True):
            np.testing.assert_array_equal(read_back(path, name), voxels)
        assert found.is_labelled == (name in LABELS)
        if found.label is not None:
            np.testing.assert_array_equal(read_back(found.label, name), LABELS[name])


def masks_in(image: str, mask: str, *, value: int = 1) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        for case in CASES:
            nifti(root / image.format(case), IMAGES[case][0], GRID_OF[case])
            for number, organ in enumerate(ORGANS, start=1):
                if case in LABELS:
                    drawn = value * (LABELS[case] == number).astype("uint8")
                    nifti(root / mask.format(case, organ.replace(" ", "_")), drawn, GRID_OF[case])

    return build


def segments(*, layered: bool) -> Callable[[Path], None]:
    """3D Slicer's files: every file numbers its segments as they were drawn, overlapping ones in layers."""

    def build(root: Path) -> None:
        for turn, case in enumerate(CASES):
            nifti(root / f"{case}.nii.gz", IMAGES[case][0], GRID_OF[case])
            if case not in LABELS:
                continue
            order = np.roll([1, 2, 3], turn)
            masks = [(LABELS[case] == number).astype("uint8") for number in order]
            stored = masks if layered else [sum(k * m for k, m in enumerate(masks, 1)).astype("uint8")]
            parts = [itk(part, GRID_OF[case]) for part in stored]
            image = SimpleITK.Compose(parts) if layered else parts[0]
            for k, number in enumerate(order):
                image.SetMetaData(f"Segment{k}_Name", ORGANS[number - 1])
                image.SetMetaData(f"Segment{k}_LabelValue", "1" if layered else str(k + 1))
                image.SetMetaData(f"Segment{k}_Layer", str(k if layered else 0))
            SimpleITK.WriteImage(image, str(root / f"{case}.seg.nrrd"))

    return build


MASKS = {
    "totalsegmentator": masks_in("{}/ct.nii.gz", "{}/segmentations/{}.nii.gz"),
    "beside": masks_in("{}/scan.nii.gz", "{}/{}.nii.gz", value=255),
    "flat": masks_in("{}.nii.gz", "{}_{}_mask.nii.gz"),
    "class_first": masks_in("images/{}.nii.gz", "masks/{1}_{0}.nii.gz"),
    "folder_per_class": masks_in("images/{}.nii.gz", "labels/{1}/{0}.nii.gz"),
    "segments": segments(layered=False),
    "layers": segments(layered=True),
}


@pytest.mark.parametrize("layout", MASKS)
def test_masks_become_one_label_with_names(layout: str, tmp_path: Path) -> None:
    MASKS[layout](tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    assert check(dataset) == ()
    values = {name: value for name, (value,) in zip(dataset.labels.names, dataset.labels.values, strict=True)}
    assert values.keys() == set(ORGANS)
    assert [case.is_labelled for case in dataset.cases] == [name in LABELS for name in sorted(CASES)]
    for name, found in zip(sorted(CASES), dataset.cases, strict=True):
        if found.label is not None:
            label = np.asanyarray(nibabel.load(found.label).dataobj)
            for number, organ in enumerate(ORGANS, start=1):
                np.testing.assert_array_equal(label == values[organ], LABELS[name] == number)


def two_areas() -> Array:
    drawn = np.zeros(SIZE, dtype="uint8")
    drawn[3:12, 4:20], drawn[14:20, 6:28] = 1, 2
    return drawn


def painted(drawn: Array) -> Array:
    return np.array([(0, 0, 0), BLUE, RED], dtype="uint8")[drawn]


def lossy(path: Path, drawn: Array) -> None:
    picture(path, (255 * drawn).astype("uint8"), quality=85)


def palette(path: Path, drawn: Array) -> None:
    image = Image.fromarray(drawn, mode="P")
    image.putpalette([0, 0, 0, *BLUE, *RED])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


Save = Callable[[Path, Array], object]
PICTURES: dict[str, tuple[str, str, Save, Array]] = {
    "black_and_white": ("images/{}.png", "masks/{}.png", lambda p, d: picture(p, 255 * d), two_areas() % 2),
    "numbers": ("{}.png", "{}_mask.png", picture, two_areas()),
    "lossy": ("images/{}.jpg", "masks/{}.jpg", lossy, two_areas() % 2),
    "colours": ("img/{}.jpg", "ann/{}.png", lambda p, d: picture(p, painted(d)), two_areas()),
    "palette": ("JPEGImages/{}.jpg", "SegmentationClass/label/{}.png", palette, two_areas()),
    "unnamed_labels": ("a/{}.png", "b/{}.png", lambda p, d: picture(p, 255 * d), two_areas() % 2),
    "three_channels": ("{}.png", "{}_gt.png", lambda p, d: picture(p, np.stack([d] * 3, -1)), two_areas()),
}


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize("coloured", [True, False])
@pytest.mark.parametrize("layout", PICTURES)
def test_pictures_and_masks_of_every_kind_come_together(layout: str, coloured: bool, tmp_path: Path) -> None:
    image, mask, save, drawn = PICTURES[layout]
    shown = {}
    for number, name in enumerate(CASES):
        shape = (*SIZE, 3) if coloured else SIZE
        voxels = np.random.default_rng(number).integers(0, 256, shape).astype("uint8")
        path = picture(tmp_path / "in" / image.format(name), voxels)
        shown[name] = np.asarray(Image.open(path))
        if name != "p2":
            save(tmp_path / "in" / mask.format(name), drawn)
    convert(tmp_path / "in", tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    assert check(dataset) == ()
    assert dataset.channels == (("R", "G", "B") if coloured else ("grey",))
    assert [case.is_labelled for case in dataset.cases] == [name in LABELS for name in sorted(CASES)]
    for name, found in zip(sorted(CASES), dataset.cases, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(found.images[0])), shown[name])
        if found.label is not None:
            np.testing.assert_array_equal(np.asarray(Image.open(found.label)), drawn)
    if layout == "colours":
        assert json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"] == {
            "background": 0,
            "blue": 1,
            "red": 2,
        }
