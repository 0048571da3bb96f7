"""Pieces of source folders: scans on all kinds of grids, pictures, masks, series.

Arrays are in NIfTI's own order (x, y, z). Grids cycle through plain, flipped, permuted and oblique affines,
so that a converter that loses or reorders a grid is found out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
SHAPE = (7, 6, 5)


def _turned(degrees: float) -> Array:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def grid(axes: Array, origin: Sequence[float]) -> Array:
    affine = np.eye(4)
    affine[:3, :3] = axes * np.array([1.25, 1.5, 3.0])
    affine[:3, 3] = origin
    return affine


GRIDS = (
    grid(np.eye(3), (0, 0, 0)),
    grid(np.diag([-1.0, 1.0, 1.0]), (90, -126, -72)),
    grid(np.diag([-1.0, -1.0, 1.0]), (90, 126, -72)),
    grid(np.eye(3)[[2, 0, 1]], (1, 2, 3)),
    grid(_turned(20)[:, [1, 2, 0]], (-30, 4, 50.5)),
)


@dataclass(frozen=True)
class Expected:
    """What the converted dataset must hold for one case."""

    images: tuple[Array, ...]
    label: Array | None
    affine: Array | None = None
    domain: str | None = None
    patient: str | None = None
    is_test: bool = False
    is_open: bool = False


Tree = dict[str, Expected]


def scan(seed: int, *, dtype: str = "int16", shape: tuple[int, ...] = SHAPE) -> Array:
    """Return random intensities; never twice the same for two seeds."""
    return np.random.default_rng(seed).integers(-900, 900, shape).astype(dtype)


def blobs(seed: int, values: Sequence[int], *, dtype: str = "uint8", shape: tuple[int, ...] = SHAPE) -> Array:
    """Return labels in which 0 and every one of `values` occur."""
    drawn = np.random.default_rng(seed + 1000).choice([0, *values], shape)
    drawn.reshape(-1)[: len(values) + 1] = [0, *values]
    return drawn.astype(dtype)


def renumbered(label: Array, values: dict[int, int]) -> Array:
    out = np.zeros_like(label, dtype=np.int64)
    for old, new in values.items():
        out[label == old] = new
    return out


def nifti(path: Path, array: Array, affine: Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    nibabel.save(image, path)
    return path


def picture(path: Path, array: Array, **options: Any) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def colours(seed: int, size: tuple[int, int] = (9, 12)) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def mask(seed: int, size: tuple[int, int] = (9, 12)) -> Array:
    drawn = np.random.default_rng(seed).integers(0, 2, size).astype(np.uint8)
    drawn[0, :2] = 0, 1
    return drawn


def plain_pairs(
    root: Path,
    names: Sequence[str],
    image: str,
    label: str | None,
    values: Sequence[int],
    *,
    renumber: dict[int, int] | None = None,
    ids: Callable[[str], str] = str,
    domain: Callable[[str], str | None] = lambda _: None,
    patient: Callable[[str], str | None] = lambda _: None,
    is_test: bool = False,
    is_open: bool = False,
    seed: int = 0,
    dtype: str = "uint8",
) -> Tree:
    """Write scans (and labels) under path patterns with one ``{}`` or more for the name; return what is
    expected.
    """
    tree: Tree = {}
    for number, name in enumerate(names, start=seed):
        affine = GRIDS[number % len(GRIDS)]
        voxels = scan(number)
        nifti(root / image.replace("{}", name), voxels, affine)
        labels = None
        if label is not None:
            raw = blobs(number, values, dtype=dtype)
            nifti(root / label.replace("{}", name), raw, affine)
            labels = renumbered(raw, renumber) if renumber else raw
        tree[ids(name)] = Expected((voxels,), labels, affine, domain(name), patient(name), is_test, is_open)
    return tree


def masked_pictures(
    root: Path,
    names: Sequence[str],
    image: str,
    label: str,
    *,
    ids: Callable[[str], str] = str,
    **expected: Any,
) -> Tree:
    """Write pictures and masks; JPEG masks get the grey edges that compression makes."""
    tree: Tree = {}
    for number, name in enumerate(names):
        size = (9 + number, 12)
        shown, drawn = colours(number, size), mask(number, size)
        path = picture(
            root / image.replace("{}", name), shown, **({"quality": 95} if image.endswith("jpg") else {})
        )
        noise = np.random.default_rng(number).integers(0, 20, size).astype(np.uint8)
        picture(root / label.replace("{}", name), np.where(drawn == 1, 255 - noise, noise).astype(np.uint8))
        facts = {key: value(name) if callable(value) else value for key, value in expected.items()}
        tree[ids(name)] = Expected((decoded(path),), drawn, **facts)
    return tree


def decoded(path: Path) -> Array:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def h5(path: Path, **arrays: Array) -> Path:
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
    return path


def nrrd(path: Path, array: Array, affine: Array) -> Path:
    import SimpleITK

    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(itk(array, affine), str(path))
    return path


def itk(array: Array, affine: Array) -> Any:
    """Return a SimpleITK image of an array (x, y, z) on a RAS affine."""
    import SimpleITK

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(array.T)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def series(folder: Path, array: Array, affine: Array, *, names: Sequence[str]) -> None:
    """Write a DICOM series; names[z] is the file of slice z."""
    import SimpleITK

    folder.mkdir(parents=True, exist_ok=True)
    image = itk(array, affine)
    direction = image.GetDirection()
    rows_columns = [direction[i] for i in (0, 3, 6, 1, 4, 7)]
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z, name in enumerate(names):
        cut = image[:, :, z]
        tags = {
            "0008|0060": "MR",
            "0020|000d": "1.2.826.0.1.1",
            "0020|000e": f"1.2.826.0.1.{sum(map(ord, str(folder)))}",
            "0008|0018": f"1.2.826.0.1.2.{z + 1}",
            "0020|0013": str(z + 1),
            "0020|0032": "\\".join(map(str, image.TransformIndexToPhysicalPoint((0, 0, z)))),
            "0020|0037": "\\".join(map(str, rows_columns)),
            "0018|0050": str(image.GetSpacing()[2]),
        }
        for key, value in tags.items():
            cut.SetMetaData(key, value)
        writer.SetFileName(str(folder / name))
        writer.Execute(cut)
