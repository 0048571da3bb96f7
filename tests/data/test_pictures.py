"""Pictures of every kind are read as they are stored, and written without loss."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as Pillow

from medplan.data import pictures
from medplan.data.images import Geometry, read_geometry, read_image, read_label, write_image, write_label
from medplan.errors import DataError
from tests.data.test_images import noise

GREY = (np.arange(35).reshape(5, 7) * 7 % 251).astype(np.uint8)
RGB = np.random.default_rng(2).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_grey_pictures_of_every_kind_are_read(tmp_path: Path) -> None:
    for ending in ("png", "bmp", "tif"):
        Pillow.fromarray(GREY).save(tmp_path / f"a.{ending}")
        image = read_image([tmp_path / f"a.{ending}"], dtype=None)
        assert np.array_equal(image.array[0, 0], GREY) and image.array.dtype == np.uint8
        assert (
            image.geometry
            == Geometry(shape=(1, 5, 7), spacing_mm=None)
            == read_geometry(tmp_path / f"a.{ending}")
        )
        Pillow.fromarray(GREY > 100).save(tmp_path / f"bits.{ending}")
        assert np.array_equal(read_label(tmp_path / f"bits.{ending}")[0][0], GREY > 100)
    deep = GREY.astype(np.uint16) * 200
    for ending in ("png", "tif"):
        Pillow.fromarray(deep).save(tmp_path / f"deep.{ending}")
        assert np.array_equal(read_image([tmp_path / f"deep.{ending}"]).array[0, 0], deep)
    Pillow.fromarray(GREY).convert("LA").save(tmp_path / "la.png")
    assert np.array_equal(read_image([tmp_path / "la.png"]).array[0, 0], GREY)


def test_colour_pictures_have_three_channels(tmp_path: Path) -> None:
    planes = RGB.transpose(2, 0, 1)
    for ending in ("png", "bmp", "tif"):
        Pillow.fromarray(RGB).save(tmp_path / f"a.{ending}")
        assert np.array_equal(read_image([tmp_path / f"a.{ending}"]).array[:, 0], planes)
    Pillow.fromarray(np.dstack([RGB, GREY])).save(tmp_path / "alpha.png")
    assert np.array_equal(read_image([tmp_path / "alpha.png"]).array[:, 0], planes)
    Pillow.fromarray(RGB).save(tmp_path / "a.jpg", quality=95)
    assert read_image([tmp_path / "a.jpg"]).array.shape == (3, 1, 5, 7)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_colour_pictures_of_sixteen_bits_keep_them(tmp_path: Path, ending: str) -> None:
    deep = RGB.astype(np.uint16) * 257
    sitk.WriteImage(sitk.GetImageFromArray(deep, isVector=True), str(tmp_path / f"a.{ending}"))
    assert np.array_equal(read_image([tmp_path / f"a.{ending}"]).array[:, 0], deep.transpose(2, 0, 1))
    assert read_geometry(tmp_path / f"a.{ending}").shape == (1, 5, 7)


def test_palettes_mean_colours_in_images_and_indices_in_labels(tmp_path: Path) -> None:
    indices = (GREY % 3).astype(np.uint8)
    picture = Pillow.fromarray(indices)
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    picture.save(tmp_path / "a.png")
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]])[indices]
    assert np.array_equal(read_image([tmp_path / "a.png"]).array[:, 0], colours.transpose(2, 0, 1))
    assert np.array_equal(read_label(tmp_path / "a.png")[0][0], indices)


def test_grey_and_colour_pictures_fit_each_other_where_nothing_is_lost(tmp_path: Path) -> None:
    Pillow.fromarray(GREY).save(tmp_path / "grey.png")
    Pillow.fromarray(np.dstack([GREY] * 3)).save(tmp_path / "equal.png")
    Pillow.fromarray(RGB).save(tmp_path / "rgb.png")
    assert read_image([tmp_path / "grey.png"], channels=3).array.shape == (3, 1, 5, 7)
    assert read_image([tmp_path / "equal.png"], channels=1).array.shape == (1, 1, 5, 7)
    with pytest.raises(DataError, match="expected 1 channel, found 3"):
        read_image([tmp_path / "rgb.png"], channels=1)
    with pytest.raises(DataError, match="one value per voxel"):
        read_label(tmp_path / "rgb.png")


def test_labels_of_pictures_are_written_without_loss(tmp_path: Path) -> None:
    geometry = Geometry(shape=(1, 5, 7), spacing_mm=None)
    path = write_label(tmp_path / "a.jpg", GREY[None], geometry)
    assert path.name == "a.png" and np.array_equal(read_label(path)[0][0], GREY)
    path = write_label(tmp_path / "b.png", GREY[None].astype(np.int32) * 200, geometry)
    assert np.array_equal(read_label(path)[0][0], GREY.astype(int) * 200)
    path = write_image(tmp_path / "p.png", noise(2, 1, 5, 7), geometry)
    assert path.name == "p.nrrd" and np.array_equal(read_image([path]).array, noise(2, 1, 5, 7))


def test_stacks_of_pages_are_refused(tmp_path: Path) -> None:
    pages = [Pillow.fromarray(GREY), Pillow.fromarray(GREY)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="2 pages"):
        pictures.read(tmp_path / "a.tif")


def test_truncated_pictures_are_refused(tmp_path: Path) -> None:
    for ending in ("png", "jpg", "bmp", "tif"):
        path = tmp_path / f"a.{ending}"
        Pillow.fromarray(np.repeat(np.repeat(RGB, 9, 0), 9, 1)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match=f"a.{ending}"):
            read_image([path])


def test_real_pictures_are_read(shared_data: Callable[[str], Path]) -> None:
    path = sorted((shared_data("kvasir_seg") / "images").glob("*.jpg"))[0]
    image = read_image([path], channels=3, dtype=None)
    assert np.array_equal(image.array[:, 0], np.asarray(Pillow.open(path)).transpose(2, 0, 1))
