"""Every converter on the layouts that its card describes."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from dataset_conversion import find, names
from dataset_conversion.freesurfer import ASEG
from medplan.errors import DataError
from medplan.plan.label_groups import PRESETS
from tests.conversion.layouts import LAYOUTS
from tests.conversion.pieces import Array, Expected, Tree

PARAMETERS = [
    pytest.param(name, build, id=build.__name__) for name, all_ in LAYOUTS.items() for build in all_
]
every_layout = pytest.mark.parametrize(("name", "build"), PARAMETERS)
Build = Callable[[Path], Tree]


def read(path: Path) -> tuple[Array, Array | None]:
    if path.suffix == ".png":
        with Image.open(path) as image:
            return np.asarray(image), None
    image = nibabel.load(path)
    return np.asanyarray(image.dataobj), image.affine


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def places(case: Expected, name: str, ending: str) -> tuple[list[str], str | None]:
    part = "Ts" if case.is_test else "Tr" if case.is_open or case.label is not None else "Unlabeled"
    images = [f"images{part}/{name}_{channel:04d}{ending}" for channel in range(len(case.images))]
    return images, None if case.label is None else f"labels{part}/{name}{ending}"


def test_every_converter_has_a_source_tree() -> None:
    assert set(LAYOUTS) == set(names())


@every_layout
def test_conversion_keeps_values_and_grids(name: str, build: Build, tmp_path: Path) -> None:
    tree = build(tmp_path / "source")
    find(name).convert(tmp_path / "source", tmp_path / "out")
    described = json.loads((tmp_path / "out" / "dataset.json").read_text())
    ending = described["file_ending"]
    expected_files = {"dataset.json"}
    for case_id, case in tree.items():
        images, label = places(case, case_id, ending)
        expected_files |= {*images, *([label] if label else [])}
        for path, voxels in zip(images, case.images, strict=True):
            found, affine = read(tmp_path / "out" / path)
            np.testing.assert_allclose(found, voxels, atol=1e-4)
            if case.affine is not None:
                np.testing.assert_allclose(affine, case.affine, atol=1e-4)
        if label is not None:
            found, affine = read(tmp_path / "out" / label)
            np.testing.assert_array_equal(found, case.label)
            if case.affine is not None:
                np.testing.assert_allclose(affine, case.affine, atol=1e-4)
    assert set(digests(tmp_path / "out")) == expected_files


@every_layout
def test_description_fits_the_files(name: str, build: Build, tmp_path: Path) -> None:
    tree = build(tmp_path / "source")
    find(name).convert(tmp_path / "source", tmp_path / "out")
    described = json.loads((tmp_path / "out" / "dataset.json").read_text())
    labels = [case.label for case in tree.values() if case.label is not None]
    present = {int(value) for label in labels for value in np.unique(label)}
    assert present <= set(described["labels"].values())
    assert len(set(described["labels"].values())) == len(described["labels"])
    assert described["numTraining"] == sum(c.label is not None and not c.is_test for c in tree.values())
    assert described.get("domain", {}) == {n: c.domain for n, c in tree.items() if c.domain}
    assert described.get("patient", {}) == {n: c.patient for n, c in tree.items() if c.patient}
    files_per_case = max(len(case.images) for case in tree.values())
    assert len(described["channel_names"]) == (
        3 if described["channel_names"]["0"] == "R" else files_per_case
    )


@every_layout
def test_converting_twice_gives_the_same_bytes(name: str, build: Build, tmp_path: Path) -> None:
    build(tmp_path / "source")
    find(name).convert(tmp_path / "source", tmp_path / "out")
    first = digests(tmp_path / "out")
    find(name).convert(tmp_path / "source", tmp_path / "out")
    assert digests(tmp_path / "out") == first
    find(name).convert(tmp_path / "source", tmp_path / "anew")
    assert digests(tmp_path / "anew") == first


@pytest.mark.parametrize("name", names())
def test_a_wrong_source_is_one_sentence_that_says_what_was_expected(name: str, tmp_path: Path) -> None:
    (tmp_path / "source" / "photos").mkdir(parents=True)
    with pytest.raises(DataError, match=r"expected .*; found photos\.$"):
        find(name).convert(tmp_path / "source", tmp_path / "out")
    with pytest.raises(DataError, match="there is no such folder"):
        find(name).convert(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


MISSING = {
    "amos": "labelsTr/amos_0001.nii.gz",
    "autopet": "SEG.nii.gz",
    "brain_structure": "dlbs_1_probmask_csf.nii",
    "chaos_prepared": "label_2.nii.gz",
    "chaos_dicom": "T2SPIR/Ground/IMG-4-9.png",
    "clinicdb": "masks/9.png",
    "kvasir": "masks/cja.jpg",
    "lits": "segmentation-33.nii",
    "mnms": "info.csv",
    "oasis_malf": "1000_glm.nii.gz",
    "polypgen": "a1_mask.jpg",
    "segthor": "Patient_01/GT.nii.gz",
    "structseg_head": "1/label.nii.gz",
    "synapse_raw": "label0001.nii.gz",
    "synapse_prepared": "image_SABS_0_slice003.png",
}
"""Files without which a scan cannot be used; elsewhere a scan without label is an unlabelled case."""


@pytest.mark.parametrize(("name", "build"), [each for each in PARAMETERS if each.id in MISSING])
def test_a_missing_file_is_one_sentence_with_its_place(name: str, build: Build, tmp_path: Path) -> None:
    build(tmp_path / "source")
    found = (
        path for path in (tmp_path / "source").rglob("*") if path.as_posix().endswith(MISSING[build.__name__])
    )
    next(found).unlink()
    with pytest.raises(DataError) as caught:
        find(name).convert(tmp_path / "source", tmp_path / "out")
    assert str(tmp_path / "source") in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_unreadable_pictures_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    LAYOUTS["radiology"][0](tmp_path / "source")
    with caplog.at_level(logging.WARNING):
        find("radiology").convert(tmp_path / "source", tmp_path / "out")
    notes = json.loads((tmp_path / "out" / "dataset.json").read_text())["notes"]
    assert len(notes) == 2
    assert "1 file(s) could not be read" in notes[0] and "broken.jpg" in notes[0]
    assert "1 file(s) are not pictures" in notes[1] and "notes.txt" in notes[1]
    assert all(note in caplog.text for note in notes)


def test_grey_pictures_stay_grey(tmp_path: Path) -> None:
    LAYOUTS["radiology"][0](tmp_path / "source")
    (tmp_path / "source" / "a.jpg").unlink()
    find("radiology").convert(tmp_path / "source", tmp_path / "out")
    described = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert described["channel_names"] == {"0": "grey"}


def test_published_splits_hold_only_cases_that_are_there(tmp_path: Path) -> None:
    LAYOUTS["synapse"][0](tmp_path / "source")
    find("synapse").convert(tmp_path / "source", tmp_path / "out")
    splits = json.loads((tmp_path / "out" / "dataset.json").read_text())["splits"]
    assert splits == {"sdmessenger_20": {"labelled": ["img0021"], "unlabelled": [], "test": []}}


def test_label_groups_of_a_card_can_be_asked_for() -> None:
    for name in names():
        card = find(name).CARD
        for preset in card.label_groups:
            values = {value for group in PRESETS[preset].values() for value in group}
            if name != "oasis":  # its labels come from either of two sources
                assert values <= set((card.labels or ASEG).values()), name


def test_published_splits_are_disjoint() -> None:
    for name in names():
        for roles in find(name).CARD.published_splits.values():
            ids = [case for members in roles.values() for case in members]
            assert len(ids) == len(set(ids)), name


def test_label_pictures_follow_their_slices_in_space(tmp_path: Path) -> None:
    """The file numbers of the tree run against z; a label stacked in file order would be upside down."""
    tree = LAYOUTS["chaos"][1](tmp_path / "source")
    ground = tmp_path / "source" / "Train_Sets" / "MR" / "7" / "T2SPIR" / "Ground"
    find("chaos").convert(tmp_path / "source", tmp_path / "out")
    label = tree["chaos07_t2spir"].label
    assert label is not None and not np.array_equal(label, label[:, :, ::-1])
    shutil.copyfile(ground / "IMG-4-12.png", ground / "IMG-4-99.png")
    with pytest.raises(DataError, match="6 label pictures for 5 slices"):
        find("chaos").convert(tmp_path / "source", tmp_path / "other")
