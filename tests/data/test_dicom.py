"""DICOM series: one per folder, in the order of their positions, without gaps."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medplan.data import dicom
from medplan.data.images import read_geometry, read_image
from medplan.errors import DataError


def write_series(
    folder: Path, *, uid: str = "1.2.3", positions: tuple[float, ...] = (0.0, 2.5, 5.0, 7.5)
) -> None:
    """Write one CT slice per position, file names against the order of the positions."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number, position in enumerate(positions):
        image = sitk.GetImageFromArray(np.full((1, 6, 5), 10 * number - 1000, dtype=np.int16))
        image.SetSpacing((0.7, 0.8, 2.5))
        tags = {
            "0008|0060": "CT",
            "0008|103e": f"series {uid}",
            "0020|000e": uid,
            "0020|000d": "1.2",
            "0008|0018": f"{uid}.{number + 1}",
            "0020|0032": f"1\\2\\{position}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(number),
            "0028|1052": "0",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}_{len(positions) - number}.dcm"))
        writer.Execute(image)


def test_dicom_series_are_sorted_by_position(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    image = read_image([tmp_path / "ct"])
    assert image.array.shape == (1, 4, 6, 5)
    assert image.array[0, :, 0, 0].tolist() == [-1000, -990, -980, -970]
    assert np.allclose(image.geometry.spacing_mm or (), (2.5, 0.8, 0.7))
    assert np.allclose(image.geometry.origin_mm, (1, 2, 0))
    assert read_geometry(tmp_path / "ct") == image.geometry
    assert dicom.is_series_folder(tmp_path / "ct") and not dicom.is_series_folder(tmp_path)


def test_several_dicom_series_in_a_folder_are_named(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", uid="1.2.3")
    write_series(tmp_path / "ct", uid="1.2.4")
    with pytest.raises(DataError, match=r"2 DICOM series.*series 1\.2\.3 CT.*series 1\.2\.4 CT"):
        read_image([tmp_path / "ct"])


def test_missing_dicom_slices_are_noticed(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", positions=(0.0, 2.5, 7.5, 10.0))
    with pytest.raises(DataError, match=r"2\.5 mm apart.* 5 mm apart"):
        read_image([tmp_path / "ct"])
