"""Raw datasets are read as they are, and what contradicts itself is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medplan.data.checks import stray_findings
from medplan.data.dataset import open_dataset
from medplan.data.images import read_image
from medplan.errors import DataError
from tests.conftest import make_raw_dataset


def describe(folder: Path, **changes: Any) -> Path:
    """Change keys of dataset.json; None removes one."""
    path = folder / "dataset.json"
    data = json.loads(path.read_text()) if path.is_file() else {}
    data |= changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    return folder


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def make(folder: Path, *files: str, **keys: Any) -> Path:
    """Write empty files and a dataset.json."""
    touch(*(folder / file for file in files))
    defaults = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    return describe(folder, **(defaults | keys))


def test_cases_without_a_label_are_unlabelled(raw_dataset: Path) -> None:
    dataset = open_dataset(raw_dataset)
    assert dataset.name == "Phantom" and dataset.channels == ("T1",)
    assert [case.id for case in dataset.cases] == [f"case{n:02d}" for n in range(6)]
    assert [case.is_labelled for case in dataset.cases] == [True] * 4 + [False] * 2
    assert [(case.id, case.is_labelled) for case in dataset.test_cases] == [("case06", True)]
    assert dataset.labels.names == ("liver", "spleen") and dataset.labels.values == ((1,), (2,))
    assert not dataset.is_pictures and dataset.strays == ()


@pytest.mark.parametrize("folder", ["imagesUnlabeled", "imagesUn", "imagesUnlabelled"])
def test_images_in_a_folder_of_their_own_are_unlabelled(tmp_path: Path, folder: str) -> None:
    root = make(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", f"{folder}/b_0000.nii.gz")
    assert [case.is_labelled for case in open_dataset(root).cases] == [True, False]
    touch(root / folder / "a_0000.nii.gz")
    with pytest.raises(DataError, match="two cases are called 'a'"):
        open_dataset(root)


@pytest.mark.parametrize("name", ["Dataset027_ACDC", "Task27_ACDC", "ACDC"])
def test_names_are_short(tmp_path: Path, name: str) -> None:
    assert open_dataset(make(tmp_path / name, "imagesTr/a_0000.nii.gz")).name == "ACDC"


def test_a_linked_folder_is_called_by_the_name_of_the_link(tmp_path: Path) -> None:
    make_raw_dataset(tmp_path / "disk" / "scans_v2", num_labelled=1)
    link = tmp_path / "Dataset004_Liver"
    link.symlink_to(tmp_path / "disk" / "scans_v2", target_is_directory=True)
    assert open_dataset(link).name == "Liver"


def test_channels_are_sorted_and_missing_ones_expected(tmp_path: Path) -> None:
    root = make(tmp_path, "imagesTr/a_0001.nii.gz", channel_names={"1": "T2", "0": "T1"})
    dataset = open_dataset(root)
    assert dataset.channels == ("T1", "T2")
    assert [path.name for path in dataset.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_a_colour_picture_is_one_file(tmp_path: Path) -> None:
    names = {"0": "R", "1": "G", "2": "B"}
    root = make(
        tmp_path,
        "imagesTr/a_0000.png",
        "labelsTr/a.png",
        "labelsTr/.b.png",
        channel_names=names,
        file_ending=".png",
    )
    dataset = open_dataset(root)
    assert len(dataset.cases[0].images) == 1 and dataset.is_pictures and dataset.strays == ()


def test_labels_of_jpegs_may_be_lossless(tmp_path: Path) -> None:
    root = make(tmp_path, "imagesTr/a_0000.jpg", "labelsTr/a.jpg", "labelsTr/a.png", file_ending=".jpg")
    label = open_dataset(root).cases[0].label
    assert label is not None and label.name == "a.png"


def test_regions_keep_their_order(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [3, 2], "enhancing": [3], "ignore": 4}
    root = make(tmp_path, "imagesTr/a_0000.nii.gz", labels=labels, regions_class_order=[1, 2, 3])
    space = open_dataset(root).labels
    assert space.names == ("whole", "core", "enhancing") and space.values == ((1, 2, 3), (2, 3), (3,))
    assert space.region_order == (1, 2, 3) and space.ignore == 4 and not space.is_exclusive
    with pytest.raises(DataError, match="'regions_class_order' is needed"):
        open_dataset(describe(root, regions_class_order=None))
    with pytest.raises(DataError, match="3 entries, one per region, found 2"):
        open_dataset(describe(root, regions_class_order=[1, 2]))


def test_images_without_any_class_are_for_pretraining(tmp_path: Path) -> None:
    root = make(tmp_path, "imagesTr/a_0000.nii.gz", labels={"background": 0})
    assert open_dataset(root).labels.names == ()
    touch(root / "labelsTr" / "a.nii.gz")
    with pytest.raises(DataError, match="no class besides the background, but there are label files"):
        open_dataset(root)


def test_label_values_need_not_be_consecutive(tmp_path: Path) -> None:
    root = make(
        tmp_path, "imagesTr/a_0000.nii.gz", labels={"background": 0, "lv": 500, "myo": 200, "rv": [600]}
    )
    assert open_dataset(root).labels.values == ((500,), (200,), (600,))


def test_path_dictionary_replaces_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELSEWHERE", str(tmp_path / "other"))
    paths = {
        "b": {"images": ["../scans/b.nii.gz"], "label": "../scans/b_seg.nii.gz"},
        "a": {"images": ["$ELSEWHERE/a.nii.gz"]},
    }
    root = make(tmp_path / "set", "imagesTr/unused_0000.nii.gz", dataset=paths)
    first, second = open_dataset(root).cases
    assert first.images == (tmp_path / "other" / "a.nii.gz",) and first.label is None
    assert second.images == (tmp_path / "scans" / "b.nii.gz",)
    assert second.label == tmp_path / "scans" / "b_seg.nii.gz"
    with pytest.raises(DataError, match=r"'dataset\.a' should be an object with a list 'images'"):
        open_dataset(describe(root, dataset={"a": {"image": "x.nii.gz"}}))


@pytest.mark.parametrize("name", ["study/1", "study\\1", ""])
def test_names_of_cases_are_names_of_files(tmp_path: Path, name: str) -> None:
    root = make(tmp_path, "imagesTr/a_0000.nii.gz", dataset={name: {"images": ["imagesTr/a_0000.nii.gz"]}})
    with pytest.raises(DataError, match="no slash"):
        open_dataset(root)


def decathlon(folder: Path, *, frames: int) -> Path:
    import nibabel

    for part, name in (("imagesTr", "b"), ("imagesTr", "a"), ("imagesTs", "c")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        array = np.random.default_rng(0).normal(size=(6, 5, 4, frames)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / part / f"{name}.nii.gz")
    touch(
        folder / "labelsTr" / "a.nii.gz", folder / "labelsTr" / "b.nii.gz", folder / "imagesTr" / "._a.nii.gz"
    )
    entries = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "ba"]
    description = {
        "name": "BRATS",
        "tensorImageSize": "4D",
        "modality": {str(n): f"m{n}" for n in range(frames)},
        "labels": {"0": "background", "2": "tumour", "1": "edema"},
        "training": entries,
        "test": ["./imagesTs/c.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def test_decathlon_datasets_are_read_with_frames_as_channels(tmp_path: Path) -> None:
    dataset = open_dataset(decathlon(tmp_path / "Task01_Brain", frames=4))
    assert dataset.name == "Brain" and dataset.file_ending == ".nii.gz"
    assert dataset.labels.names == ("edema", "tumour") and dataset.labels.values == ((1,), (2,))
    assert [case.id for case in dataset.cases] == ["a", "b"] and all(
        case.is_labelled for case in dataset.cases
    )
    assert [case.id for case in dataset.test_cases] == ["c"]
    assert read_image(dataset.cases[0].images, channels=len(dataset.channels)).array.shape == (4, 4, 5, 6)


def test_first_version_of_nnunet_lists_files_without_their_suffix(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        *("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz"),
        channel_names=None,
        modality={"0": "CT", "1": "PET"},
        labels={"0": "background", "1": "tumour"},
        training=[{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        test=[],
    )
    (case,) = open_dataset(root).cases
    assert [path.name for path in case.images] == ["a_0000.nii.gz", "a_0001.nii.gz"] and case.is_labelled


def test_domains_patients_and_exclusions_belong_to_cases(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        *(f"imagesTr/{name}_0000.nii.gz" for name in ("case1", "case2", "case3")),
        domain={"case1": "CT", "case2": "MR"},
        patient={"case1": 7, "case2": "x"},
        exclude=["case3"],
    )
    first, second = open_dataset(root).cases
    assert (first.domain, second.domain, first.patient, second.patient) == ("CT", "MR", "7", "x")
    with pytest.raises(
        DataError, match=r"'exclude' names the unknown case 'cas3' \(did you mean 'case3'\?\)"
    ):
        open_dataset(describe(root, exclude=["cas3"]))
    with pytest.raises(DataError, match="'domain' names the unknown case 'Case1'"):
        open_dataset(describe(root, exclude=None, domain={"Case1": "CT"}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"channel_name": {"0": "T1"}}, r"unknown key 'channel_name' \(did you mean 'channel_names'\?\)"),
        ({"domains": {}}, r"unknown key 'domains' \(did you mean 'domain'\?\)"),
        ({"channel_names": None}, "'channel_names' is missing"),
        ({"channel_names": {"1": "T1"}}, r"numbered 0, 1, \.\.\., found \[1\]"),
        ({"channel_names": {"T1": "0"}}, "should be numbers"),
        ({"labels": None}, "'labels' should give each class its value"),
        ({"labels": {"background": 1, "a": 2}}, r"'labels\.background' should be 0"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "one value belongs to two classes"),
        ({"labels": {"background": 0, "a": 1.5}}, r"'labels\.a' should be an integer"),
        ({"labels": {"background": 0, "a": True}}, r"'labels\.a' should be an integer"),
        ({"labels": {"background": 0, "a": 1, "ignore": 1}}, "both 'ignore' and a class"),
        ({"labels": {"0": "background", "1": "a", "2": "a"}}, "two values the same name"),
        ({"file_ending": ".dcm"}, "'file_ending' should be one of"),
        ({"exclude": "a"}, "'exclude' should be a list"),
        ({"domain": ["a"]}, "'domain' should be an object"),
        ({"dataset": []}, "'dataset' should be an object"),
        ({"file_ending": ".nrrd"}, "no training images"),
    ],
)
def test_descriptions_that_cannot_be_meant_are_refused(
    tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(make(tmp_path, "imagesTr/a_0000.nii.gz", **keys))


def test_free_text_is_allowed(tmp_path: Path) -> None:
    keys = {
        "name": "x",
        "licence": "y",
        "reference": "z",
        "author": "w",
        "labels_made_by": "v",
        "numTraining": 1,
    }
    assert open_dataset(make(tmp_path, "imagesTr/a_0000.nii.gz", **keys)).cases


def test_missing_or_broken_descriptions_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.json: there is no such file"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(DataError, match="expected a JSON object"):
        open_dataset(tmp_path)


def test_a_missing_ending_is_guessed_from_the_files(tmp_path: Path) -> None:
    root = make(tmp_path, "imagesTr/a_0000.mha", file_ending=None)
    assert open_dataset(root).file_ending == ".mha"
    touch(root / "imagesTr" / "b_0000.nrrd")
    with pytest.raises(DataError, match=r"cannot be guessed: found \.mha and \.nrrd"):
        open_dataset(root)


def test_files_without_a_channel_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"as 'a_0000\.nii\.gz'"):
        open_dataset(make(tmp_path, "imagesTr/a.nii.gz"))


def test_labels_without_an_image_are_noted(tmp_path: Path) -> None:
    root = make(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "labelsTr/b.nii.gz")
    assert [path.name for path in open_dataset(root).strays] == ["b.nii.gz"]


def test_images_of_another_format_are_noted(tmp_path: Path) -> None:
    root = make(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii", "imagesTr/notes.txt")
    dataset = open_dataset(root)
    assert [case.id for case in dataset.cases] == ["a"]
    (finding,) = stray_findings(dataset)
    assert "b_0000.nii: this image is passed over" in finding.sentence and not finding.is_error


def test_published_splits_are_read_as_far_as_cases_are_for_training(raw_dataset: Path) -> None:
    cases = [case.id for case in open_dataset(raw_dataset).cases]
    describe(raw_dataset, splits={"paper": {"labelled": cases[:1], "unlabelled": cases[1:2], "test": []}})
    assert open_dataset(raw_dataset).splits == {"paper": {"labelled": (cases[0],), "unlabelled": (cases[1],)}}


@pytest.mark.parametrize("roles", [{"train": []}, {"labelled": ["nobody"]}, ["a"], {"labelled": "a"}])
def test_splits_of_unknown_roles_or_cases_are_refused(raw_dataset: Path, roles: object) -> None:
    describe(raw_dataset, splits={"paper": roles})
    with pytest.raises(DataError, match=r"paper|labelled"):
        open_dataset(raw_dataset)


def test_a_split_with_a_case_in_two_roles_is_refused(raw_dataset: Path) -> None:
    case = open_dataset(raw_dataset).cases[0].id
    describe(raw_dataset, splits={"paper": {"labelled": [case], "test": [case]}})
    with pytest.raises(DataError, match="twice"):
        open_dataset(raw_dataset)


def test_unknown_cases_come_with_the_nearest_one(raw_dataset: Path) -> None:
    dataset = open_dataset(raw_dataset)
    assert dataset.case("case06") == dataset.test_cases[0]
    with pytest.raises(DataError, match=r"no case 'cse01' \(did you mean 'case01'\?\)"):
        dataset.case("cse01")


def test_real_datasets_are_read_by_their_paths(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("chaos_mr_t2spir")
    numbers = sorted(path.name[6:-7] for path in folder.glob("image_*.nii.gz"))
    paths = {
        n: {"images": [str(folder / f"image_{n}.nii.gz")], "label": str(folder / f"label_{n}.nii.gz")}
        for n in numbers
    }
    dataset = open_dataset(make(tmp_path, dataset=paths))
    assert len(dataset.cases) == len(numbers) == 10
    assert read_image(dataset.cases[0].images, channels=1).geometry.spacing_mm is not None
