"""Images to predict are found as they lie, and what is missing is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from medplan.data.images import read_image
from medplan.data.inputs import find_inputs
from medplan.errors import DataError
from tests.data.test_dataset import touch
from tests.data.test_dicom import write_series


def names(cases: Any) -> dict[str, list[str]]:
    return {case.id: [path.name for path in case.images] for case in cases}


def test_inputs_are_files_with_or_without_a_channel_number(tmp_path: Path) -> None:
    touch(
        tmp_path / "b_0000.nii.gz",
        tmp_path / "scan_2024.nii.gz",
        tmp_path / ".hidden.nii.gz",
        tmp_path / "x.txt",
    )
    expected = {"b": ["b_0000.nii.gz"], "scan_2024": ["scan_2024.nii.gz"]}
    assert names(find_inputs(tmp_path, 1, ".nii.gz")) == expected
    assert names(find_inputs(tmp_path / "b_0000.nii.gz", 1, ".nii.gz")) == {"b": ["b_0000.nii.gz"]}
    # Another format than in training is fine.
    assert names(find_inputs(tmp_path, 1, ".nrrd")) == expected


def test_label_files_beside_their_scans_are_no_scans(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scans = ("p1.nii.gz", "p2_0000.nii.gz", "other_mask.nii.gz")
    touch(*(tmp_path / name for name in (*scans, "p1_seg.nii.gz", "p2 Label.nii.gz", "p1.seg.nrrd")))
    assert names(find_inputs(tmp_path, 1)) == {
        "p1": ["p1.nii.gz"], "p2": ["p2_0000.nii.gz"], "other_mask": ["other_mask.nii.gz"]
    }  # fmt: skip
    assert "left out: 3" in caplog.text
    assert names(find_inputs(tmp_path / "p1_seg.nii.gz", 1)) == {"p1_seg": ["p1_seg.nii.gz"]}


def test_missing_channels_of_inputs_are_named(tmp_path: Path) -> None:
    touch(*(tmp_path / f"a_{n:04d}.nii.gz" for n in range(3)))
    files = [f"a_{n:04d}.nii.gz" for n in range(3)]
    assert names(find_inputs(tmp_path, 3)) == names(find_inputs(tmp_path / files[1], 3)) == {"a": files}
    (tmp_path / files[1]).unlink()
    with pytest.raises(DataError, match="case 'a' lacks channel a_0001; the model needs 3"):
        find_inputs(tmp_path, 3)
    with pytest.raises(DataError, match="lacks channel a_0001"):
        find_inputs(tmp_path / files[0], 3)


def test_two_files_of_one_input_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii.gz", tmp_path / "a_0000.nii.gz")
    with pytest.raises(DataError, match="two files are the same case 'a'"):
        find_inputs(tmp_path, 1)
    assert names(find_inputs(tmp_path / "a.nii.gz", 1)) == {"a": ["a.nii.gz"]}


def test_one_file_may_hold_all_channels(tmp_path: Path) -> None:
    Pillow.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "p_0000.png")
    Pillow.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "q.png")
    assert names(find_inputs(tmp_path, 3, ".png")) == {"p": ["p_0000.png"], "q": ["q.png"]}
    touch(tmp_path / "four" / "v.nii.gz")
    assert names(find_inputs(tmp_path / "four", 4)) == {"v": ["v.nii.gz"]}


def test_inputs_may_be_dicom_folders(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "p1", uid="1.2.3")
    write_series(tmp_path / "in" / "p2", uid="1.2.4")
    assert names(find_inputs(tmp_path / "in", 1)) == {"p1": ["p1"], "p2": ["p2"]}
    (case,) = find_inputs(tmp_path / "in" / "p1", 1)
    assert case.id == "p1" and read_image(case.images).array.shape == (1, 4, 6, 5)
    with pytest.raises(DataError, match="lacks channel p1_0001"):
        find_inputs(tmp_path / "in" / "p1", 2)
    write_series(tmp_path / "in" / "p2", uid="1.2.5")
    with pytest.raises(DataError, match="2 DICOM series"):
        find_inputs(tmp_path / "in", 1)


def test_dicom_folders_may_be_channels(tmp_path: Path) -> None:
    write_series(tmp_path / "p_0000", uid="1.2.3")
    write_series(tmp_path / "p_0001", uid="1.2.4")
    assert names(find_inputs(tmp_path, 2)) == {"p": ["p_0000", "p_0001"]}


def test_nothing_to_predict_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        find_inputs(tmp_path / "x", 1)
    with pytest.raises(DataError, match="no images in this folder"):
        find_inputs(tmp_path, 1)
    touch(tmp_path / "a.txt")
    with pytest.raises(DataError, match="none of the formats"):
        find_inputs(tmp_path / "a.txt", 1)
