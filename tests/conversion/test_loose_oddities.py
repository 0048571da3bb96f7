"""What does not fit is said and never guessed."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from dataset_conversion.loose.looks import looks_like_labels
from dataset_conversion.loose.names import found, identifier
from dataset_conversion.scans import convert
from dataset_conversion.volumes import grid_of, read_volume
from medplan.cli import main
from medplan.data.checks import check
from medplan.data.dataset import open_dataset
from medplan.errors import DataError
from tests.conversion.loose_pieces import AFFINE, box, described, label_of, notes_of, pairs
from tests.conversion.pieces import GRIDS, SHAPE, blobs, nifti, nrrd, picture, scan, series


def test_a_case_that_lacks_a_channel_is_left_out_and_named(tmp_path: Path) -> None:
    pairs(tmp_path / "in", {"a": "12", "b": "12F", "c": "1", "d": "12"})
    nifti(tmp_path / "in" / "c_seg.nii.gz", blobs(0, [1]), AFFINE)
    convert(tmp_path / "in", tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    assert [case.id for case in dataset.cases] == ["a", "b", "d"] and dataset.channels == ("T1", "T2")
    assert "1 case(s) lack a channel and are left out: c (no T2)" in notes_of(tmp_path / "out")
    assert "none of the channels T1, T2 and are left out: b_flair.nii.gz" in notes_of(tmp_path / "out")
    assert "no scan of that name" not in notes_of(tmp_path / "out")


def test_cases_without_common_channels_are_an_error_that_counts_them(tmp_path: Path) -> None:
    pairs(tmp_path / "in", {"a": "12", "b": "1F", "c": "CM", "d": "2F"})
    with pytest.raises(DataError, match=r"differ in their channels: T1 \+ T2 \(1\), T1 \+ FLAIR \(1\)"):
        convert(tmp_path / "in", tmp_path / "out")


def test_two_scans_of_one_channel_are_an_error(tmp_path: Path) -> None:
    pairs(tmp_path / "in", {"a": "12", "b": "12"})
    nifti(tmp_path / "in" / "images" / "a_t1.nii.gz", scan(0), AFFINE)
    with pytest.raises(DataError, match=r"both be T1 of one case: a_t1.nii.gz and images/a_t1.nii.gz"):
        convert(tmp_path / "in", tmp_path / "out")


def test_scans_with_labels_of_their_own_stay_apart(tmp_path: Path) -> None:
    pairs(tmp_path / "in", {"1": "CM", "2": "CM"})
    for kind in ("ct", "mr"):
        nifti(tmp_path / "in" / f"1_{kind}_seg.nii.gz", blobs(ord(kind[0]), [1]), AFFINE)
    convert(tmp_path / "in", tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    assert [case.id for case in dataset.cases] == ["1_ct", "1_mr", "2_ct", "2_mr"]
    assert [case.is_labelled for case in dataset.cases] == [True, True, False, False]


def test_numbered_scans_are_no_channels(tmp_path: Path) -> None:
    for number in range(4):
        nifti(tmp_path / "in" / f"scan_{number:04d}.nii.gz", scan(number), AFFINE)
    convert(tmp_path / "in", tmp_path / "out")
    assert len(open_dataset(tmp_path / "out").cases) == 4


@pytest.mark.parametrize("labelled", ["t1", "t2"])
def test_channels_on_other_grids_come_onto_the_labelled_one(labelled: str, tmp_path: Path) -> None:
    """A ramp in space stays that ramp, whatever the grid."""
    other = GRIDS[4] @ np.diag([0.8, 0.9, 0.5, 1])
    grids = {"t1": (GRIDS[4], (9, 9, 5)), "t2": (other, (11, 10, 9))}
    for kind, (affine, shape) in grids.items():
        places = nibabel.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
        nifti(tmp_path / "in" / "p" / f"{kind}.nii.gz", (places @ [1, 2, 3]).astype("float32"), affine)
    affine, shape = grids[labelled]
    nifti(tmp_path / "in" / "p" / "mask.nii.gz", box(2, 2, 2, shape=shape), affine)
    convert(tmp_path / "in", tmp_path / "out")
    (case,) = open_dataset(tmp_path / "out").cases
    assert "channels on other grids, now resampled: p (" in notes_of(tmp_path / "out")
    for path in case.images:
        image = nibabel.load(path)
        assert image.shape == shape
        np.testing.assert_allclose(image.affine, affine, atol=1e-4)
        places = nibabel.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
        inner = (slice(2, 7),) * 2 + (slice(1, 4),)
        np.testing.assert_allclose(np.asarray(image.dataobj)[inner], (places @ [1, 2, 3])[inner], atol=1e-2)
    np.testing.assert_array_equal(label_of(tmp_path / "out", "p"), box(2, 2, 2, shape=shape))


def test_a_label_lies_on_its_very_grid_before_one_that_holds_it(tmp_path: Path) -> None:
    nifti(tmp_path / "in" / "p" / "flair.nii.gz", scan(0, shape=(16, 16, 16)), AFFINE)
    nifti(tmp_path / "in" / "p" / "dwi.nii.gz", scan(1), AFFINE)
    nifti(tmp_path / "in" / "p" / "mask.nii.gz", box(1, 1, 1), AFFINE)
    convert(tmp_path / "in", tmp_path / "out")
    assert label_of(tmp_path / "out", "p").shape == SHAPE
    assert "p (FLAIR onto DWI)" in notes_of(tmp_path / "out")


def test_channels_of_different_places_are_left_out(tmp_path: Path) -> None:
    pairs(tmp_path / "in", {"a": "12", "b": "12", "c": "1"})
    away = AFFINE.copy()
    away[:3, 3] += 500
    nifti(tmp_path / "in" / "c_t2.nii.gz", scan(0), away)
    convert(tmp_path / "in", tmp_path / "out")
    assert len(open_dataset(tmp_path / "out").cases) == 2
    assert "1 case(s) are left out since their channels do not cover the same region: c (T2 and T1)" in (
        notes_of(tmp_path / "out")
    )


def test_where_masks_overlap_the_smaller_one_counts_and_it_is_said(tmp_path: Path) -> None:
    large, small = np.zeros(SHAPE, "uint8"), box(2, 2, 2)
    large[1:6, 1:5, 1:5] = 1
    nifti(tmp_path / "in" / "p1.nii.gz", scan(0), AFFINE)
    nifti(tmp_path / "in" / "p1_tumour_mask.nii.gz", small, AFFINE)
    nifti(tmp_path / "in" / "p1_liver_mask.nii.gz", large, AFFINE)
    nifti(tmp_path / "in" / "p2.nii.gz", scan(0), AFFINE)
    nifti(tmp_path / "in" / "p2_liver_mask.nii.gz", large, AFFINE)
    convert(tmp_path / "in", tmp_path / "out")
    assert described(tmp_path / "out")["labels"] == {"background": 0, "liver": 1, "tumour": 2}
    np.testing.assert_array_equal(label_of(tmp_path / "out", "p1"), large + small)
    assert "the smaller one counts there: p1 (tumour and liver, 8 voxels)" in notes_of(tmp_path / "out")
    assert "1 labelled case(s) lack masks that others have" in notes_of(tmp_path / "out")
    assert "p2 (no tumour)" in notes_of(tmp_path / "out")


def test_predictions_are_no_labels_until_somebody_says_so(tmp_path: Path) -> None:
    nifti(tmp_path / "in" / "p.nii.gz", scan(0), AFFINE)
    nifti(tmp_path / "in" / "predictions" / "p.nii.gz", box(1, 1, 1), AFFINE)
    convert(tmp_path / "in", tmp_path / "out")
    assert not open_dataset(tmp_path / "out").cases[0].is_labelled
    assert "called predictions and are left out, for instance predictions/p.nii.gz" in notes_of(
        tmp_path / "out"
    )
    (tmp_path / "in" / "predictions" / "p.nii.gz").rename(tmp_path / "in" / "p_seg.nii.gz")
    convert(tmp_path / "in", tmp_path / "out")
    assert open_dataset(tmp_path / "out").cases[0].is_labelled


def test_files_of_two_raters_are_no_classes(tmp_path: Path) -> None:
    nifti(tmp_path / "in" / "p.nii.gz", scan(0), AFFINE)
    for rater in ("raterA", "raterB"):
        nifti(tmp_path / "in" / f"p_seg_{rater}.nii.gz", box(1, 1, 1), AFFINE)
    with pytest.raises(DataError, match=r"p_seg_raterB.nii.gz: it overlaps with another label of its case"):
        convert(tmp_path / "in", tmp_path / "out")


def test_a_label_that_may_belong_to_two_scans_is_left_out_and_named(tmp_path: Path) -> None:
    for case in ("p", "q"):
        for kind in ("orig", "bias corrected"):
            nifti(tmp_path / "in" / case / kind / "T1.nii.gz", scan(0), AFFINE)
    nifti(tmp_path / "in" / "p" / "lesion.nii.gz", box(1, 1, 1), AFFINE)
    convert(tmp_path / "in", tmp_path / "out")
    what = (
        "p/lesion.nii.gz: it may belong to p/bias corrected/T1.nii.gz or p/orig/T1.nii.gz, so that the label"
    )
    assert what in notes_of(tmp_path / "out")


def test_a_film_among_volumes_is_left_out_and_named(tmp_path: Path) -> None:
    for number in range(3):
        nifti(tmp_path / "in" / f"p{number}" / "frame01.nii.gz", scan(number), AFFINE)
        nifti(tmp_path / "in" / f"p{number}" / "frame12.nii.gz", scan(number), AFFINE)
    nifti(tmp_path / "in" / "p0" / "4d.nii.gz", scan(9, shape=(*SHAPE, 12)), AFFINE)
    convert(tmp_path / "in", tmp_path / "out")
    assert len(open_dataset(tmp_path / "out").cases) == 6
    assert "1 file(s) do not hold 1 volume(s) and are left out: p0_4d (12)" in notes_of(tmp_path / "out")
    assert "folders like p0 are taken for patients" in notes_of(tmp_path / "out")


def test_parts_of_one_class_are_joined_unless_they_overlap(tmp_path: Path) -> None:
    nifti(tmp_path / "in" / "p.nii.gz", scan(0), AFFINE)
    nifti(tmp_path / "in" / "p_mask.nii.gz", box(0, 0, 0), AFFINE)
    nifti(tmp_path / "in" / "p_mask_1.nii.gz", box(4, 3, 3), AFFINE)
    convert(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(label_of(tmp_path / "out", "p"), box(0, 0, 0) | box(4, 3, 3))
    nifti(tmp_path / "in" / "p_mask_1.nii.gz", box(1, 1, 1), AFFINE)
    with pytest.raises(DataError, match="overlaps with another label of its case"):
        convert(tmp_path / "in", tmp_path / "out")


def test_masks_of_0_and_1_and_of_0_and_255_are_the_same(tmp_path: Path) -> None:
    for name, white in (("a", 1), ("b", 255)):
        picture(tmp_path / "in" / f"{name}.png", scan(1, shape=(20, 20)).astype("uint8"))
        picture(tmp_path / "in" / f"{name}_mask.png", white * box(4, 4, shape=(20, 20)))
    convert(tmp_path / "in", tmp_path / "out")
    for name in ("a", "b"):
        with Image.open(tmp_path / "out" / "labelsTr" / f"{name}.png") as label:
            np.testing.assert_array_equal(np.asarray(label), box(4, 4, shape=(20, 20)))


def test_without_anything_that_can_be_read_it_says_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "volume.h5").write_text("")
    with pytest.raises(DataError, match=r"no scans that can be read .* 1 file\(s\) of other kinds .*1 .h5"):
        convert(tmp_path / "in", tmp_path / "out")
    nifti(tmp_path / "in" / "labels" / "a.nii.gz", blobs(0, [1]), AFFINE)
    with pytest.raises(DataError, match=r"beside the labels; found labels, volume\.h5"):
        convert(tmp_path / "in", tmp_path / "out")


def test_pictures_in_dicom_files_are_a_scan_each(tmp_path: Path) -> None:
    source = tmp_path / "in" / "chest"
    source.mkdir(parents=True)
    for number in range(3):
        series(tmp_path / f"{number}", scan(number)[:, :, :1], GRIDS[0], names=["x.dcm"])
        shutil.copy(tmp_path / f"{number}" / "x.dcm", source / f"{number}.dcm")
    nifti(source / "1_mask.nii.gz", box(1, 2, 0)[:, :, :1], GRIDS[0])
    convert(tmp_path / "in", tmp_path / "out")
    cases = open_dataset(tmp_path / "out").cases
    assert [case.id for case in cases] == ["chest_0", "chest_1", "chest_2"]
    assert [case.is_labelled for case in cases] == [False, True, False]
    np.testing.assert_array_equal(label_of(tmp_path / "out", "chest_1"), box(1, 2, 0)[:, :, :1])


@pytest.mark.parametrize("axes", [2, 3])
def test_volumes_of_one_slice_may_have_two_axes(axes: int, tmp_path: Path) -> None:
    drawn = box(1, 2, shape=SHAPE[:2])
    shape = SHAPE[:2] if axes == 2 else (*SHAPE[:2], 1)
    nifti(tmp_path / "in" / "a.nii.gz", scan(0, shape=shape), AFFINE)
    nifti(tmp_path / "in" / "a_seg.nii.gz", drawn.reshape(shape), AFFINE)
    convert(tmp_path / "in", tmp_path / "out")
    assert label_of(tmp_path / "out", "a").shape == shape
    np.testing.assert_array_equal(label_of(tmp_path / "out", "a").reshape(SHAPE[:2]), drawn)
    assert check(open_dataset(tmp_path / "out")) == ()


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for case in ("a", "b"):
        series(source / case, scan(0), GRIDS[0], names=[f"{z}.dcm" for z in range(SHAPE[2])])
    shutil.copy(source / "a" / "2.dcm", source / "a" / "x.dcm")
    (source / "a" / "1.dcm").unlink()
    head = b"\0" * 128 + b"DICM" + b"\x02\0\x02\0UI\x1e\x001.2.840.10008.5.1.4.1.1.481.3\0"
    (source / "b" / "contours.dcm").write_bytes(head + b"\0" * 64)
    (source / "report.pdf").write_text("no scan")
    convert(source, tmp_path / "out")
    assert [case.id for case in open_dataset(tmp_path / "out").cases] == ["b"]
    notes = notes_of(tmp_path / "out")
    assert "a DICOM folder is left out" in notes and "slices are missing or doubled" in notes
    assert "1 RTSTRUCT file(s) are not read (b/contours.dcm); export them as NIfTI" in notes
    assert "1 file(s) of other kinds are left out (1 .pdf), for instance report.pdf" in notes
    assert "no label was found; call labels like their scans" in notes


@pytest.mark.parametrize("number", range(len(GRIDS)))
@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha", "dicom"])
def test_headers_tell_the_grid_that_reading_gives(number: int, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    if ending == "dicom":
        series(path, scan(0), GRIDS[number], names=[f"{z}.dcm" for z in range(SHAPE[2])])
    else:
        (nifti if ending == "nii.gz" else nrrd)(path, scan(0), GRIDS[number])
    volume = read_volume(path)
    shape, affine = grid_of(path)
    assert shape == volume.voxels.shape
    np.testing.assert_allclose(affine, volume.affine, atol=1e-4)


def test_labels_are_told_from_scans_by_their_areas(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    areas = np.repeat(np.repeat(rng.integers(0, 90, (6, 6, 6)), 8, axis=0), 8, axis=1)
    contents = {
        "areas": (areas.astype("int16"), True),
        "floats": (areas.astype("float64"), True),
        "one": (box(1, 1, 1), True),
        "nothing": (np.zeros(SHAPE, "uint8"), True),
        "scan": (rng.integers(0, 256, (30, 30, 9)).astype("uint8"), False),
        "smooth": (np.indices((30, 30, 9)).sum(axis=0).astype("uint8") * 2, False),
        "ct": (scan(3), False),
        "probability": (areas / 90, False),
        "constant": (np.full(SHAPE, 7, "uint8"), False),
    }
    for name, (voxels, is_label) in contents.items():
        assert looks_like_labels(nifti(tmp_path / f"{name}.nii.gz", voxels, AFFINE)) == is_label, name


@pytest.mark.parametrize(
    ("path", "whole", "name"),
    [
        ("p1/ct.nii.gz", True, "p1_ct"),
        ("p1/p1_t1.nii.gz", True, "p1_t1"),
        ("p1/p1_t1.nii.gz", False, "p1"),
        ("T1/7.nii.gz", False, "7"),
        ("images/a.b/Scan 01.nii.gz", True, "a_b_Scan_01"),
        ("image.nii.gz", True, "image"),
        ("t1.nii.gz", False, "t1"),
        ("1/scan_1.nii.gz", True, "1_scan_1"),
        ("sub-01/ses-0002/sub-01_ses-0002_T1w.nii.gz", False, "sub-01_ses-0002"),
        ("pt_7/PD_7_ct.nii.gz", False, "pt_7_PD_7"),
        ("Study/CT scans/CT 7.nii.gz", False, "Study_7"),
    ],
)
def test_ids_say_the_path_once(path: str, whole: bool, name: str, tmp_path: Path) -> None:
    assert identifier(found(tmp_path / path, tmp_path), whole=whole) == name


def test_the_summary_says_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs(tmp_path / "in", {"a": "1F"})
    nifti(tmp_path / "in" / "a_liver_mask.nii.gz", box(0, 0, 0), AFFINE)
    arguments = ["--source", str(tmp_path / "in"), "--target", str(tmp_path / "out")]
    assert main(["convert", "scans", *arguments]) == 0
    assert "(1 training cases, 1 of them labelled)\n  channels: T1, FLAIR\n  classes: liver\n" in (
        capsys.readouterr().out
    )
