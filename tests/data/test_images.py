"""Files in and out: what is written is read back exactly, on the same grid, and damage is noticed."""

import gzip
import tracemalloc
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from medplan.data.images import (
    Geometry,
    as_label,
    ending_of,
    read_geometry,
    read_image,
    read_label,
    write_image,
    write_label,
)
from medplan.errors import DataError

ANGLES = np.deg2rad([12.0, -25.0, 40.0])


def rotation() -> tuple[float, ...]:
    (cx, cy, cz), (sx, sy, sz) = np.cos(ANGLES), np.sin(ANGLES)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return tuple((about_z @ about_y @ about_x).ravel().tolist())


OBLIQUE = Geometry(
    shape=(4, 5, 6), spacing_mm=(2.5, 0.8, 0.7), origin_mm=(-12.3, 45.6, 7.8), direction=rotation()
)
VOLUMES = [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("ending", VOLUMES)
def test_volumes_come_back_exactly_on_the_same_oblique_grid(tmp_path: Path, ending: str) -> None:
    array = noise(*OBLIQUE.shape)
    path = write_image(tmp_path / f"a{ending}", array, OBLIQUE)
    image = read_image([path])
    assert np.array_equal(image.array, array[None]) and image.array.dtype == np.float32
    for name in ("spacing_mm", "origin_mm", "direction"):
        assert np.allclose(getattr(image.geometry, name), getattr(OBLIQUE, name), rtol=1e-6, atol=1e-6), name
    assert read_geometry(path) == image.geometry
    # Written once more, nothing at all changes.
    again = read_image([write_image(tmp_path / f"b{ending}", image.array, image.geometry)])
    assert again.geometry.spacing_mm == image.geometry.spacing_mm
    assert again.geometry.origin_mm == image.geometry.origin_mm
    assert np.allclose(again.geometry.direction, image.geometry.direction, rtol=0, atol=1e-7)


def test_labels_are_written_with_the_affine_of_the_image(tmp_path: Path) -> None:
    affine = np.diag([-0.7, 0.8, 2.5, 1.0])
    affine[:3, 3] = [3.0, -4.5, 6.25]
    nibabel.save(nibabel.Nifti1Image(noise(6, 5, 4), affine), tmp_path / "image.nii.gz")
    image = read_image([tmp_path / "image.nii.gz"])
    label = np.zeros(image.geometry.shape, dtype=np.uint8)
    write_label(tmp_path / "label.nii.gz", label, image.geometry)
    assert np.allclose(nibabel.load(tmp_path / "label.nii.gz").affine, affine, rtol=0, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.nii.gz", "label.nii.gz"]


@pytest.mark.parametrize("values", [[0, 1, 255], [0, 300, 600], [-1, 0, 4], [0, 70000, 3]])
@pytest.mark.parametrize("ending", VOLUMES)
def test_label_values_survive(tmp_path: Path, ending: str, values: list[int]) -> None:
    label = np.resize(np.array(values, dtype=np.int64), OBLIQUE.shape)
    found, _ = read_label(write_label(tmp_path / f"l{ending}", label, OBLIQUE))
    assert np.array_equal(found, label) and found.dtype.kind in "iu"


def test_orientation_letters_agree_with_nibabel(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for number in range(20):
        matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        geometry = Geometry(shape=(3, 4, 5), spacing_mm=(1, 1, 1), direction=tuple(matrix.ravel().tolist()))
        path = write_image(tmp_path / f"{number}.nii", noise(3, 4, 5), geometry)
        expected = "".join(nibabel.aff2axcodes(nibabel.load(path).affine))
        assert read_geometry(path).orientation == expected


def test_sheared_axes_are_replaced_by_the_nearest_perpendicular_ones(tmp_path: Path, caplog) -> None:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[0, 1] = 0.1
    array = noise(6, 5, 4)
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "a.nii.gz")
    image = read_image([tmp_path / "a.nii.gz"])
    matrix = np.reshape(image.geometry.direction, (3, 3))
    assert np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.array_equal(image.array[0], array.transpose(2, 1, 0))
    assert "perpendicular" in caplog.text
    assert np.allclose(matrix, np.diag([-1.0, -1.0, 1.0]), atol=0.05)


@pytest.mark.parametrize("kind", ["u1", "i1", "<i2", ">i2", "<u2", ">i4", "<u4", "<i8", "<u8", "<f4", ">f8"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("version", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_every_number_type_of_nifti_is_read(tmp_path: Path, ending: str, kind: str, version: type) -> None:
    array = np.arange(120).reshape(6, 5, 4).astype(kind)
    header = version.header_class(endianness=">" if kind[0] == ">" else "<")
    header.set_data_dtype(kind)
    nibabel.save(version(array, np.eye(4), header), tmp_path / f"a{ending}")
    found = read_image([tmp_path / f"a{ending}"], dtype=None).array
    assert np.array_equal(found[0], array.transpose(2, 1, 0)) and found.dtype == np.dtype(kind[-2:])


def test_scaled_nifti_agrees_with_nibabel_and_simpleitk(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(6, 5, 4), np.eye(4))
    image.header.set_slope_inter(0.25, -1024.5)
    nibabel.save(image, tmp_path / "a.nii.gz")
    found = read_image([tmp_path / "a.nii.gz"]).array[0]
    assert np.array_equal(found, nibabel.load(tmp_path / "a.nii.gz").get_fdata().transpose(2, 1, 0))
    assert np.array_equal(found, sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii.gz"))))


def test_not_a_number_is_kept_to_be_found(tmp_path: Path) -> None:
    array = noise(*OBLIQUE.shape)
    array[1, 2, 3], array[0, 0, 0] = np.nan, np.inf
    for ending in VOLUMES:
        found = read_image([write_image(tmp_path / f"a{ending}", array, OBLIQUE)]).array[0]
        assert np.array_equal(found, array, equal_nan=True), ending


def test_a_flipped_bit_in_a_compressed_volume_is_noticed(tmp_path: Path) -> None:
    path = write_image(
        tmp_path / "a.nii.gz", noise(10, 20, 30), Geometry(shape=(10, 20, 30), spacing_mm=(1, 1, 1))
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged|truncated"):
        read_image([path])


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_truncated_volumes_are_refused(tmp_path: Path, ending: str, share: float) -> None:
    path = write_image(
        tmp_path / f"a{ending}", noise(10, 20, 30), Geometry(shape=(10, 20, 30), spacing_mm=(1, 1, 1))
    )
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"a\.(nii|nrrd|mha)"):
        read_image([path])


def test_a_header_that_promises_more_than_memory_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.float64), np.eye(4)), path)
    content = bytearray(path.read_bytes())
    content[42:48] = np.full(3, 32767, "<i2").tobytes()
    path.write_bytes(content)
    with pytest.raises(DataError, match="more than fit into memory"):
        read_image([path])


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("content", [b"", b"\x1f\x8bnothing", b"x" * 1000])
def test_a_damaged_header_is_an_error_that_names_the_file(
    tmp_path: Path, ending: str, content: bytes
) -> None:
    path = tmp_path / f"scan{ending}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="scan"):
        read_geometry(path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_what_a_full_disk_cuts_short_is_an_error_and_leaves_no_file(
    tmp_path: Path, ending: str, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    array = np.random.default_rng(0).random((20, 30, 40)).astype(np.float32)
    with full_disk(), pytest.raises(DataError, match="scan"):
        write_image(
            tmp_path / f"scan{ending}", array, Geometry(shape=(20, 30, 40), spacing_mm=(1.0, 1.0, 1.0))
        )
    assert list(tmp_path.iterdir()) == []


def test_gzip_files_in_several_pieces_are_read(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.nii", noise(*OBLIQUE.shape), OBLIQUE)
    data = path.read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(data[:400]) + gzip.compress(data[400:]))
    assert np.array_equal(read_image([tmp_path / "b.nii.gz"]).array[0], noise(*OBLIQUE.shape))


def test_reading_a_label_takes_hardly_more_memory_than_its_voxels(tmp_path: Path) -> None:
    geometry = Geometry(shape=(100, 400, 400), spacing_mm=(1, 1, 1))
    path = write_label(tmp_path / "a.nii.gz", np.zeros(geometry.shape, np.uint8), geometry)
    assert path.stat().st_size < 100_000
    read_label(path)
    tracemalloc.start()
    label, _ = read_label(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.4 * label.nbytes


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_image([tmp_path / "none.nii.gz"])
    with pytest.raises(DataError, match="no such file"):
        read_geometry(tmp_path / "none.png")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="none of the formats"):
        read_image([tmp_path / "a.txt"])
    for name in ("a.nii.gz", "a.nrrd", "a.png", "a.nii"):
        (tmp_path / name).write_bytes(b"not an image")
        with pytest.raises(DataError, match=name):
            read_image([tmp_path / name])


def test_channels_are_stacked_and_must_share_a_shape(tmp_path: Path) -> None:
    arrays = noise(3, *OBLIQUE.shape)
    paths = [write_image(tmp_path / f"c_{n:04d}.nii", array, OBLIQUE) for n, array in enumerate(arrays)]
    assert np.array_equal(read_image(paths, channels=3).array, arrays)
    other = write_image(tmp_path / "d.nii", noise(4, 5, 7), Geometry(shape=(4, 5, 7), spacing_mm=(1, 1, 1)))
    with pytest.raises(DataError, match=r"\(4, 5, 7\) differs from \(4, 5, 6\)"):
        read_image([paths[0], other])
    with pytest.raises(DataError, match="expected 2 channels, found 1"):
        read_image(paths[:1], channels=2)


@pytest.mark.parametrize("ending", VOLUMES)
def test_several_channels_in_one_file_come_back_in_order(tmp_path: Path, ending: str) -> None:
    arrays = noise(3, *OBLIQUE.shape)
    path = write_image(tmp_path / f"a{ending}", arrays, OBLIQUE)
    image = read_image([path])
    assert np.array_equal(image.array, arrays)
    assert np.allclose(image.geometry.direction, OBLIQUE.direction, atol=1e-6)
    with pytest.raises(DataError, match="frames of a 4-D file"):
        read_image([path], channels=1)


def test_frames_of_nifti_are_its_last_dimension(tmp_path: Path) -> None:
    array = noise(6, 5, 4, 2)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
    assert np.array_equal(read_image([tmp_path / "a.nii.gz"]).array, array.transpose(3, 2, 1, 0))


def test_two_dimensional_volumes_have_one_slice(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(noise(5, 6)), str(tmp_path / "a.nii"))
    assert read_image([tmp_path / "a.nii"]).array.shape == (1, 1, 5, 6)


def test_stored_type_is_kept_on_request(tmp_path: Path) -> None:
    path = write_label(tmp_path / "a.nii", np.ones(OBLIQUE.shape, np.int16), OBLIQUE)
    assert read_image([path]).array.dtype == np.float32
    assert read_image([path], dtype=None).array.dtype == np.int16


def test_labels_that_are_no_integers_are_refused(tmp_path: Path) -> None:
    label = np.zeros(OBLIQUE.shape, np.float32)
    label[0, 0, 0] = 1.00001
    found, _ = read_label(write_image(tmp_path / "a.nii", label, OBLIQUE))
    assert found[0, 0, 0] == 1 and found.dtype == np.uint8
    label[0, 0, 0] = 0.5
    with pytest.raises(DataError, match=r"integers, found 0\.5"):
        read_label(write_image(tmp_path / "b.nii", label, OBLIQUE))
    label[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="integers, found nan"):
        read_label(write_image(tmp_path / "c.nii", label, OBLIQUE))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5])
def test_no_label_value_is_made_up(tmp_path: Path, value: float) -> None:
    array = np.zeros((1, 2, 2, 2), np.float32)
    array[0, 0, 0, 0] = value
    with pytest.raises(DataError, match=f"integers, found {value:g}"):
        as_label(array, tmp_path / "label.nii.gz")


@pytest.mark.parametrize("name", ["A.NII.GZ", "x.nii", "x.tiff", "x.JPG", "x.txt", "x.gz"])
def test_endings_are_known_whatever_their_case(name: str) -> None:
    assert ending_of(name) == {"A.NII.GZ": ".nii.gz", "x.JPG": ".jpg", "x.txt": "", "x.gz": ""}.get(
        name, name[1:]
    )


def test_importing_the_reader_imports_neither_simpleitk_nor_torch() -> None:
    import subprocess
    import sys

    program = "import sys, medplan.data.dataset; sys.exit(bool({'SimpleITK', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    "pattern", ["chaos_mr_t2spir/*_1.nii.gz", "mscmr_bssfp/*_1.nii.gz", "oasis_malf/*_glm.nii.gz"]
)
def test_real_scans_round_trip_with_their_affine(
    tmp_path: Path, shared_data: Callable[[str], Path], pattern: str
) -> None:
    folder, name = pattern.split("/")
    for path in sorted(shared_data(folder).glob(name))[:2]:
        image = read_image([path], dtype=None)
        copy = write_image(tmp_path / path.name, image.array[0], image.geometry)
        old, new = nibabel.load(path), nibabel.load(copy)
        assert old.shape == new.shape
        assert np.allclose(old.affine, new.affine, rtol=0, atol=1e-4)
        assert np.array_equal(np.asarray(old.dataobj), np.asarray(new.dataobj))
