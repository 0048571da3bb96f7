"""Loose scans become a dataset by their names and their place in space."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dataset_conversion.loose.grids import on_grid
from dataset_conversion.scans import convert
from dataset_conversion.volumes import Volume
from medplan.data.checks import check
from medplan.data.dataset import open_dataset
from medplan.errors import DataError
from tests.conversion.pieces import GRIDS, SHAPE, Array, blobs, nifti, scan


def label_of(target: Path, case: str) -> Array:
    return np.asanyarray(nibabel.load(target / "labelsTr" / f"{case}.nii.gz").dataobj)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("scan_01.nii.gz", "scan_01_seg.nii.gz"),
        ("Scan 01.nii.gz", "scan 01-label.nii"),
        ("img0001.nii.gz", "label0001.nii.gz"),
        ("a/images/7.nii.gz", "a/labels/7.nii.gz"),
        ("imagesTr/p1.nii.gz", "labelsTr/p1.nii.gz"),
        ("p1/T1.nii.gz", "p1/mask.nii.gz"),
        ("p1.nii.gz", "p1_Segmentation_by_JD.nii.gz"),
        ("p1.nii.gz", "p1.seg.nrrd"),
        ("P1.NII", "P1_GT.NII.GZ"),
    ],
)
def test_a_label_finds_its_scan_by_name(image: str, label: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "out"
    nifti(source / image, scan(0), GRIDS[1])
    nifti(source / "other 12.nii.gz", scan(1), GRIDS[2])
    drawn = blobs(0, [1, 3])
    if label.endswith("nrrd"):
        import SimpleITK

        nifti(tmp_path / "x.nii.gz", drawn, GRIDS[1])
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(tmp_path / "x.nii.gz")), str(source / label))
    else:
        nifti(source / label, drawn.astype("float64"), GRIDS[1])
    convert(source, target)
    dataset = open_dataset(target)
    assert check(dataset) == ()
    assert dataset.labels.names == ("label 1", "label 3")
    (labelled,) = (case for case in dataset.cases if case.is_labelled)
    assert len(dataset.cases) == 2 and not labelled.id.startswith("other")
    np.testing.assert_array_equal(label_of(target, labelled.id), drawn)


@pytest.mark.parametrize("number", range(len(GRIDS)))
@pytest.mark.parametrize("turn", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, 1)])
def test_a_cropped_and_turned_label_is_put_back(
    number: int, turn: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    affine, drawn = GRIDS[number], blobs(number, [1, 2])
    drawn[:2], drawn[-1:] = 0, 0
    cut = Volume(
        voxels=drawn[2:-1], affine=affine @ np.array(nibabel.affines.from_matvec(np.eye(3), (2, 0, 0)))
    )
    axes = np.array(list(zip(np.argsort(turn), np.array(signs)[np.argsort(turn)], strict=True)))
    turned = Volume(
        voxels=nibabel.orientations.apply_orientation(cut.voxels, axes),
        affine=cut.affine @ nibabel.orientations.inv_ornt_aff(axes, cut.voxels.shape),
    )
    wobbled = Volume(voxels=turned.voxels, affine=turned.affine * (1 + 1e-6))
    np.testing.assert_array_equal(on_grid(wobbled, SHAPE, affine).voxels, drawn)


def test_a_label_of_other_voxels_or_without_scan_is_left_out_and_named(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("a", "b", "c"):
        nifti(source / f"{name}.nii.gz", scan(0), GRIDS[0])
    nifti(source / "a_seg.nii.gz", blobs(0, [1], shape=(9, 9, 9)), GRIDS[0] @ np.diag([0.7, 0.7, 0.7, 1]))
    nifti(source / "b_seg.nii.gz", np.zeros(SHAPE, "uint8"), GRIDS[0])
    nifti(source / "d_seg.nii.gz", blobs(0, [1]), GRIDS[0])
    convert(source, tmp_path / "out")
    notes = " ".join(json.loads((tmp_path / "out" / "dataset.json").read_text())["notes"])
    assert "a_seg.nii.gz: its grid is not that of the scan, (9, 9, 9) voxels of 0.875, 1.05, 2.1 mm" in notes
    assert "b_seg.nii.gz: only background" in notes and "d_seg.nii.gz: there is no scan of that name" in notes
    assert sorted(path.name for path in (tmp_path / "out" / "labelsTr").iterdir()) == ["b.nii.gz"]


def test_names_in_any_script_stay_apart(tmp_path: Path) -> None:
    for number, name in enumerate(("M\u00fcller 1", "\u5de5", "\u4f5c", "A.B")):
        nifti(tmp_path / "in" / f"{name}.nii.gz", scan(number), GRIDS[0])
    convert(tmp_path / "in", tmp_path / "out")
    assert [case.id for case in open_dataset(tmp_path / "out").cases] == ["A_B", "Muller_1", "u4f5c", "u5de5"]


def test_what_is_no_label_and_what_is_ambiguous_is_an_error(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii.gz", scan(0), GRIDS[0])
    nifti(tmp_path / "a_seg.nii.gz", scan(0).astype("float32") / 7, GRIDS[0])
    with pytest.raises(DataError, match="this is no label file"):
        convert(tmp_path, tmp_path.with_name("out"))
    nifti(tmp_path / "a_mask.nii.gz", blobs(0, [1]), GRIDS[0])
    with pytest.raises(DataError, match=r"two labels belong to 'a.nii.gz': a_mask.nii.gz and a_seg.nii.gz"):
        convert(tmp_path, tmp_path.with_name("out"))


def test_a_label_that_was_added_joins_and_names_given_by_hand_stay(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "out"
    for number in range(2):
        nifti(source / f"{number}.nii.gz", scan(number), GRIDS[number])
    nifti(source / "0_seg.nii.gz", blobs(0, [1]), GRIDS[0])
    convert(source, target)
    described = json.loads((target / "dataset.json").read_text())
    described["labels"] = {"background": 0, "liver": 1}
    described |= {"channel_names": {"0": "CT"}, "patient": {"0": "A", "1": "B"}, "exclude": ["0"]}
    (target / "dataset.json").write_text(json.dumps(described))
    nifti(source / "1_seg.nii.gz", blobs(1, [1, 2]), GRIDS[1])
    corrected = blobs(5, [1])
    nifti(source / "0_seg.nii.gz", corrected, GRIDS[0])
    convert(source, target)
    dataset = open_dataset(target)
    assert [(case.id, case.patient) for case in dataset.cases] == [("1", "B")]
    assert dataset.labels.names == ("liver", "label 2") and dataset.channels == ("CT",)
    assert all(case.is_labelled for case in dataset.cases)
    (source / "1_seg.nii.gz").unlink()  # as one that somebody put into labelsTr would be
    convert(source, target)
    assert "labelsTr/1.nii.gz: has no label file" in (target / "dataset.json").read_text()
    assert all(case.is_labelled for case in open_dataset(target).cases)
    np.testing.assert_array_equal(label_of(target, "0"), corrected)
