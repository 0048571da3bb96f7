"""A small brain dataset made from a real template: what ``medplan demo`` learns from.

The ICBM-152 T1 template and its tissue maps come inside the nilearn package. Every brain is the template
under its own smooth random deformation, with its own tissue contrast, bias field and noise, on its own grid.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medplan.data.images import Geometry, write_image, write_label
from medplan.errors import UsageError
from medplan.randomness import generator
from medplan.records import write_text

__all__ = ["make_brains"]

CLASSES = ("grey matter", "white matter")
SPACING_MM = 3.0


def make_brains(
    folder: Path, *, num_labelled: int, num_unlabelled: int, num_test: int, seed: int = 0
) -> Path:
    """Write a raw dataset of synthetic brains, 3 mm isotropic, with the labels of the test cases in
    ``labelsTs``.

    Args:
        folder: the raw dataset to write, for instance ``raw_data/Brains``.

    Raises: UsageError if nilearn is not installed.
    """
    template, tissues, affine = _template()
    counts = (("Tr", num_labelled, True), ("Tr", num_unlabelled, False), ("Ts", num_test, True))
    number = 0
    for part, count, has_label in counts:
        for _ in range(count):
            number += 1
            image, label, geometry = _brain(template, tissues, affine, generator(seed, number))
            name = f"brain{number:02d}"
            write_image(folder / f"images{part}" / f"{name}_0000.nii.gz", image, geometry)
            if has_label:
                write_label(folder / f"labels{part}" / f"{name}.nii.gz", label, geometry)
    description = {
        "name": "Synthetic brains from the ICBM-152 template",
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, **{name: value for value, name in enumerate(CLASSES, 1)}},
        "numTraining": num_labelled,
        "file_ending": ".nii.gz",
    }
    write_text(json.dumps(description, indent=1), folder / "dataset.json")
    return folder


Volume = npt.NDArray[np.float32]


def _template() -> tuple[Volume, Volume, npt.NDArray[np.float64]]:
    """Return the T1 (X, Y, Z), the shares of fluid and of `CLASSES` (3, X, Y, Z), and the affine."""
    package = find_spec("nilearn")
    if package is None or package.origin is None:
        raise UsageError(
            "The demo's brains come from nilearn, which is missing. Install it: pip install 'medplan[demo]'."
        )
    folder = Path(package.origin).parent / "datasets" / "data"

    def load(name: str) -> nib.Nifti1Image:
        return nib.load(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")

    t1 = load("t1")
    grey, white = (np.asarray(load(name).dataobj, np.float32) / 255 for name in ("gm", "wm"))
    image = np.asarray(t1.dataobj, np.float32)
    fluid = np.clip((image > 0) - grey - white, 0, 1)
    return image / image.max(), np.stack([fluid, grey, white]), t1.affine


def _brain(
    template: Volume, tissues: Volume, affine: npt.NDArray[np.float64], rng: np.random.Generator
) -> tuple[Volume, npt.NDArray[np.uint8], Geometry]:
    """Return one brain as image (Z, Y, X), label (Z, Y, X) and geometry."""
    shape = tuple(int(np.ceil(n / SPACING_MM)) for n in template.shape)
    where = _deformation(shape, rng) + np.indices(shape) * SPACING_MM

    def warp(volume: Volume) -> Volume:
        smooth = ndimage.gaussian_filter(volume, SPACING_MM / 3)
        return np.asarray(ndimage.map_coordinates(smooth, where, order=1), np.float32)

    shares = np.stack([warp(tissue) for tissue in tissues])
    inside = shares.sum(0) > 0.5
    label = np.where(inside, shares.argmax(0), 0).astype(np.uint8)
    contrast = np.array([rng.uniform(0.15, 0.35), rng.uniform(0.5, 0.65), rng.uniform(0.8, 1.0)])
    image = 0.7 * np.tensordot(contrast, shares, 1) + 0.3 * warp(template)
    image *= np.exp(0.2 * _smooth_noise(shape, 12.0, rng))
    image = (image + 0.03 * rng.standard_normal(shape)) * inside * rng.uniform(200, 1200)
    whole = ndimage.find_objects(inside.astype(np.uint8))[0]
    box = tuple(slice(max(0, s.start - 2), min(n, s.stop + 2)) for s, n in zip(whole, shape, strict=True))
    x, y, z = (affine @ [*(s.start * SPACING_MM for s in box), 1])[:3]
    depth, height, width = (s.stop - s.start for s in reversed(box))
    geometry = Geometry(
        shape=(depth, height, width),
        spacing_mm=(SPACING_MM,) * 3,
        origin_mm=(-x, -y, z),
        direction=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0),
    )
    return image[box].astype(np.float32).T, label[box].T, geometry


def _deformation(shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return displacements (3, X, Y, Z) in mm: a small affine map about the centre plus a smooth random
    field.
    """
    centre = (np.array(shape) * SPACING_MM / 2)[:, None, None, None]
    grid = np.indices(shape) * SPACING_MM - centre
    affine = rng.normal(0, 0.04, (3, 3))
    field = np.stack([4.0 * _smooth_noise(shape, 5.0, rng) for _ in range(3)])
    return np.tensordot(affine, grid, 1) + field + rng.normal(0, 3.0, 3)[:, None, None, None]


def _smooth_noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return Gaussian noise smoothed over `sigma` voxels, with unit deviation."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    return np.asarray(noise / noise.std())
