"""What was given by hand or found before stays when a folder is converted again."""

import json
from pathlib import Path

import numpy as np
import SimpleITK

from dataset_conversion.scans import convert
from medplan.data.dataset import open_dataset
from tests.conversion.loose_pieces import AFFINE, box, described, label_of, notes_of, pairs
from tests.conversion.pieces import blobs, itk, nifti, picture, scan


def test_names_and_values_stay_when_classes_join(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    pairs(source, {"a": "1F", "b": "1F"})
    for organ, place in (("liver", (0, 0, 0)), ("spleen", (4, 3, 3))):
        nifti(source / f"a_{organ}_mask.nii.gz", box(*place), AFFINE)
    convert(source, target)
    text = described(target)
    text |= {"labels": {"background": 0, "hepar": 1, "spleen": 2}, "channel_names": {"0": "T1", "1": "dark"}}
    (target / "dataset.json").write_text(
        json.dumps(text | {"contact": "us", "splits": {"s": {"test": ["b"]}}})
    )
    nifti(source / "a_colon_mask.nii.gz", box(0, 3, 3), AFFINE)
    convert(source, target)
    assert described(target)["labels"] == {"background": 0, "hepar": 1, "spleen": 2, "colon": 3}
    assert described(target)["channel_names"] == {"0": "T1", "1": "dark"}
    assert described(target)["contact"] == "us" and described(target)["splits"] == {"s": {"test": ["b"]}}
    np.testing.assert_array_equal(np.argwhere(label_of(target, "a") == 3), np.argwhere(box(0, 3, 3)))
    pairs(source, {"a": "2", "b": "2"})
    convert(source, target)
    assert described(target)["channel_names"] == {"0": "T1", "1": "T2", "2": "dark"}


def test_further_channels_join_the_cases(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    for kinds, channels in (("1", ("T1",)), ("F", ("T1", "FLAIR")), ("2", ("T1", "T2", "FLAIR"))):
        pairs(source, {"a": kinds, "b": kinds})
        convert(source, target)
        dataset = open_dataset(target)
        assert [case.id for case in dataset.cases] == ["a", "b"] and dataset.channels == channels


def test_a_channel_without_name_gets_one_when_files_say_it(tmp_path: Path) -> None:
    nifti(tmp_path / "in" / "a.nii.gz", scan(0), AFFINE)
    convert(tmp_path / "in", tmp_path / "out")
    assert open_dataset(tmp_path / "out").channels == ("scan",)
    (tmp_path / "in" / "ct").mkdir()
    (tmp_path / "in" / "a.nii.gz").rename(tmp_path / "in" / "ct" / "a.nii.gz")
    convert(tmp_path / "in", tmp_path / "out")
    assert open_dataset(tmp_path / "out").channels == ("CT",)


def test_a_segment_gives_its_name_to_a_value_without_one(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    for case in ("a", "b"):
        nifti(source / f"{case}.nii.gz", scan(0), AFFINE)
    nifti(source / "a_seg.nii.gz", box(0, 0, 0), AFFINE)
    convert(source, target)
    image = itk(box(1, 1, 1), AFFINE)
    for key, value in {"Name": "liver", "LabelValue": "1", "Layer": "0"}.items():
        image.SetMetaData(f"Segment0_{key}", value)
    SimpleITK.WriteImage(image, str(source / "b.seg.nrrd"))
    convert(source, target)
    assert described(target)["labels"] == {"background": 0, "liver": 1}
    image.SetMetaData("Segment0_Name", "spleen")
    SimpleITK.WriteImage(image, str(source / "b.seg.nrrd"))
    convert(source, target)
    assert described(target)["labels"] == {"background": 0, "liver": 1, "spleen": 2}
    assert "a segment 'spleen' is stored as 1, which is another class elsewhere" in notes_of(target)
    np.testing.assert_array_equal(label_of(target, "b"), 2 * box(1, 1, 1))


def test_colours_keep_their_numbers_when_one_joins(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    drawn = np.zeros((20, 20, 3), "uint8")
    drawn[2:9, 2:9] = 255, 0, 0
    for name in ("a", "b"):
        picture(source / f"{name}.png", scan(1, shape=(20, 20)).astype("uint8"))
        picture(source / f"{name}_mask.png", drawn)
        convert(source, target)
        drawn[12:18, 2:9] = 0, 0, 255
    assert described(target)["labels"] == {"background": 0, "red": 1, "blue": 2}


def test_the_names_of_a_dataset_that_needed_no_conversion_are_taken(tmp_path: Path) -> None:
    nifti(tmp_path / "in" / "imagesTr" / "a_0000.nii.gz", scan(0), AFFINE)
    nifti(tmp_path / "in" / "labelsTr" / "a.nii.gz", blobs(0, [1, 2]), AFFINE)
    text = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumour": 2}}
    (tmp_path / "in" / "dataset.json").write_text(json.dumps(text | {"file_ending": ".nii.gz"}))
    convert(tmp_path / "in", tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    assert (dataset.labels.names, dataset.channels) == (("liver", "tumour"), ("CT",))


def test_visits_of_a_patient_stay_together_and_kinds_of_disease_are_no_patients(tmp_path: Path) -> None:
    for folder, name in (("p1", "1"), ("p1", "2"), ("p2", "1"), ("p3", "1")):
        nifti(tmp_path / "in" / "images" / folder / f"visit_{name}.nii.gz", scan(0), AFFINE)
        nifti(tmp_path / "kinds" / "abcd"[int(folder[1])] / f"{folder}_{name}.nii.gz", scan(0), AFFINE)
    convert(tmp_path / "in", tmp_path / "out")
    found = {"p1_visit_1": "p1", "p1_visit_2": "p1", "p2_visit_1": "p2", "p3_visit_1": "p3"}
    assert described(tmp_path / "out")["patient"] == found
    assert "folders like p1 are taken for patients" in notes_of(tmp_path / "out")
    corrected = described(tmp_path / "out") | {"patient": found | {"p2_visit_1": "p3"}}
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(corrected))
    convert(tmp_path / "in", tmp_path / "out")
    assert described(tmp_path / "out")["patient"] == found | {"p2_visit_1": "p3"}
    convert(tmp_path / "kinds", tmp_path / "others")
    assert "patient" not in described(tmp_path / "others")
