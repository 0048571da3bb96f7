"""The writer of raw datasets: what it refuses, and how it goes on."""

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dataset_conversion import find
from dataset_conversion.card import Card
from dataset_conversion.listing import folders_below
from dataset_conversion.volumes import Volume, affine_of, save
from dataset_conversion.writing import Case, write_dataset
from medplan.errors import DataError, UsageError
from tests.conversion.pieces import GRIDS, blobs, nifti, scan
from tests.conversion.trees import hippocampus

CARD = Card(
    name="Toy",
    title="Toy",
    about="",
    modality="MR",
    home="",
    licence="",
    layout=("any",),
    channels=("MR",),
    labels={"one": 1, "two": 2},
    num_cases="1",
    serves=(),
    split="",
)


def case(folder: Path, name: str = "a", **changes: object) -> Case:
    image = nifti(folder / f"{name}_image.nii.gz", scan(1), GRIDS[0])
    label = nifti(folder / f"{name}_label.nii.gz", blobs(1, [1, 2]), GRIDS[0])
    return Case(**{"id": name, "images": (image,), "label": label} | changes)  # type: ignore[arg-type]


def write(folder: Path, *cases: Case, target: str = "out") -> Path:
    write_dataset(CARD, cases, folder / target, source=folder / "source")
    return folder / target


def test_files_that_need_no_change_keep_their_bytes(tmp_path: Path) -> None:
    out = write(tmp_path, case(tmp_path))
    assert (out / "imagesTr" / "a_0000.nii.gz").read_bytes() == (tmp_path / "a_image.nii.gz").read_bytes()
    assert (out / "labelsTr" / "a.nii.gz").read_bytes() == (tmp_path / "a_label.nii.gz").read_bytes()


def test_unpacked_nifti_is_only_packed(tmp_path: Path) -> None:
    image = nifti(tmp_path / "b.nii", scan(2), GRIDS[4])
    out = write(tmp_path, Case(id="b", images=(image,)))
    packed = (out / "imagesUnlabeled" / "b_0000.nii.gz").read_bytes()
    assert gzip.decompress(packed) == image.read_bytes()
    assert packed[4:8] == bytes(4), "the time of packing would make the bytes differ"


def test_undeclared_label_values_are_refused_with_case_file_and_values(tmp_path: Path) -> None:
    label = nifti(tmp_path / "odd.nii.gz", blobs(1, [1, 7]), GRIDS[0])
    with pytest.raises(
        DataError, match=r"case 'a' .*odd\.nii\.gz\]: holds label values \[7\], expected only \[0, 1, 2\]"
    ):
        write(tmp_path, case(tmp_path, label=label))
    assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.parametrize("value", [0.4, np.nan, np.inf])
def test_fractions_are_no_labels(tmp_path: Path, value: float) -> None:
    voxels = blobs(1, [1, 2]).astype(np.float32)
    voxels[3, 3, 3] = value
    label = nifti(tmp_path / "odd.nii.gz", voxels, GRIDS[0])
    with pytest.raises(DataError, match=rf"a label value is {value:g}, which is no whole number"):
        write(tmp_path, case(tmp_path, label=label))


def test_labels_that_rounding_spoilt_are_put_right(tmp_path: Path) -> None:
    clean = blobs(1, [1, 2])
    label = nifti(tmp_path / "odd.nii.gz", (clean + 1e-4).astype(np.float32), GRIDS[0])
    out = write(tmp_path, case(tmp_path, label=label))
    found = np.asanyarray(nibabel.load(out / "labelsTr" / "a.nii.gz").dataobj)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, clean)


@pytest.mark.parametrize("computed", [False, True])
def test_image_and_label_of_different_shape_are_refused(tmp_path: Path, computed: bool) -> None:
    small = nifti(tmp_path / "small.nii.gz", scan(1, shape=(3, 3, 3)), GRIDS[0])
    image = (lambda: Volume(voxels=scan(1, shape=(3, 3, 3)), affine=GRIDS[0])) if computed else small
    with pytest.raises(DataError, match=r"differ in shape, \(3, 3, 3\) against \(7, 6, 5\)"):
        write(tmp_path, case(tmp_path, images=(image,)))


def test_a_truncated_file_is_one_sentence(tmp_path: Path) -> None:
    made = case(tmp_path)
    assert isinstance(made.label, Path)
    made.label.write_bytes(made.label.read_bytes()[:60])
    with pytest.raises(DataError, match=r"a_label\.nii\.gz: cannot be read as an image"):
        write(tmp_path, made)


@pytest.mark.parametrize("name", ["", "a b", "../a", "a.b", "\u00e4"])
def test_case_ids_are_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot be a case id"):
        write(tmp_path, case(tmp_path, name="x", id=name))


def test_two_cases_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two cases would both be called 'a'"):
        write(tmp_path, case(tmp_path), case(tmp_path))


def test_another_dataset_is_never_written_over(tmp_path: Path) -> None:
    out = write(tmp_path, case(tmp_path))
    before = (out / "dataset.json").read_bytes()
    with pytest.raises(
        DataError, match=r"holds files of another dataset or source \(for instance imagesTr/a_0000"
    ):
        write(tmp_path, case(tmp_path, name="b"))
    hippocampus(tmp_path / "source")
    with pytest.raises(DataError, match="convert into an empty folder"):
        find("hippocampus").convert(tmp_path / "source", out)
    assert (out / "dataset.json").read_bytes() == before
    (tmp_path / "full" / "imagesTr").mkdir(parents=True)
    (tmp_path / "full" / "imagesTr" / "a_0000.nii.gz").write_bytes(b"mine")
    with pytest.raises(DataError, match="convert into an empty folder"):
        write(tmp_path, case(tmp_path), target="full")


def test_an_interrupted_conversion_goes_on_and_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    calls: list[str] = []

    def read(name: str, fails: bool) -> Volume:
        calls.append(name)
        if fails:
            raise KeyboardInterrupt
        return Volume(voxels=scan(len(name)), affine=GRIDS[3])

    def cases(fails: bool) -> list[Case]:
        return [
            Case(id=name, images=(lambda n=name: read(n, fails and n == "bb"),))
            for name in ("a", "bb", "ccc")
        ]

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, *cases(True))
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert not list((tmp_path / "out").rglob("*bb*"))
    calls.clear()
    out = write(tmp_path, *cases(False))
    assert "a" not in calls and "bb" in calls
    whole = write(tmp_path, *cases(False), target="whole")
    for path in whole.rglob("*.*"):
        assert (out / path.relative_to(whole)).read_bytes() == path.read_bytes()
    assert {path.name for path in out.iterdir()} == {"imagesUnlabeled", "dataset.json"}


def test_an_interrupted_conversion_of_another_source_is_not_continued(tmp_path: Path) -> None:
    made = case(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".conversion.json").write_text(json.dumps({"name": "Toy", "source": "/elsewhere"}))
    with pytest.raises(DataError, match="of another dataset or source"):
        write(tmp_path, made)


def test_leftovers_of_a_killed_conversion_are_removed(tmp_path: Path) -> None:
    (tmp_path / "out" / "labelsTr").mkdir(parents=True)
    (tmp_path / "out" / "labelsTr" / ".writing.a.nii.gz").write_bytes(b"half")
    out = write(tmp_path, case(tmp_path))
    assert [path.name for path in (out / "labelsTr").iterdir()] == ["a.nii.gz"]


def test_a_target_inside_the_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lies inside the source"):
        write_dataset(CARD, [case(tmp_path)], tmp_path / "raw_data" / "Toy", source=tmp_path)


def test_a_broken_description_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="convert into an empty folder"):
        write(tmp_path, case(tmp_path))


def test_stored_values_and_scale_are_kept_apart(tmp_path: Path) -> None:
    grey = scan(3).astype(np.uint8)
    save(Volume(voxels=grey, affine=GRIDS[1], scale=(400 / 255, -125.0)), tmp_path / "ct.nii.gz")
    image = nibabel.load(tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(image.dataobj.get_unscaled(), grey)
    np.testing.assert_allclose(image.get_fdata(), grey / 255 * 400 - 125, atol=1e-4)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "PSR", "ASL"])
def test_affine_of_points_where_it_says(axes: str) -> None:
    affine = affine_of((1.0, 2.0, 3.0), axes=axes, origin_mm=(4, 5, 6))
    assert "".join(nibabel.aff2axcodes(affine)) == axes
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), (1, 2, 3))
    np.testing.assert_allclose(affine[:3, 3], (4, 5, 6))


def test_linked_folders_are_searched_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "source")
    found = [path.relative_to(tmp_path).as_posix() for path in folders_below(tmp_path / "source")]
    assert found == ["source", "source/link", "source/link/deep"]


def test_converters_are_found_by_loose_names() -> None:
    assert find("MSCMRSeg") is find("mscmrseg")
    assert find("Kvasir-Sessile").CARD.name == "KvasirSessile"
    with pytest.raises(
        UsageError,
        match=r"no converter 'hipocampus' \(did you mean 'hippocampus'\?\); there are: abdomen_ct_mr, ",
    ):
        find("hipocampus")
