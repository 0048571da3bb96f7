"""The grid that cases are resampled to, and how their intensities are normalised."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Literal

import numpy as np

from medplan.plan.schema import Modality, Normalisation

__all__ = [
    "choose_crop", "choose_dims", "choose_normalisation", "choose_orientation", "choose_spacing",
    "diameter_mm",
]  # fmt: skip

TARGET_MM = 1.5
THICK_MM = 3.0
"""Slices thicker than this, twice the target, keep their spacing."""

SMALL_IMAGE_VOXELS = 32
SMALL_CLASS_VOXELS = 5
THIN_VOLUME_SLICES = 8

Spacing = tuple[float, float, float]


def diameter_mm(volume_mm3: float) -> float:
    """Return the diameter of the ball with that volume."""
    return float((6 * volume_mm3 / np.pi) ** (1 / 3))


def choose_spacing(
    median_mm: Spacing | None,
    extent_mm: tuple[float, float, float] | None,
    class_diameters_mm: Mapping[str, float],
) -> tuple[Spacing | None, str]:
    """Choose the spacing (z, y, x) and give the reason.

    1.5 mm in every direction, except that
        * pictures have no spacing;
        * if the image is less than 32 voxels wide along some axis at 1.5 mm, or the smallest tenth of the
          classes less than 5, the axes finer than 1.5 mm keep their median spacing: 1.5 mm would destroy what
          is there (a tenth, because among a hundred classes some are a few stray voxels at any spacing);
        * axes coarser than 3 mm (thick slices) keep their median spacing: finer slices would be invented.

    Args:
        median_mm: median spacing over the cases.
        extent_mm: median size of the images.
        class_diameters_mm: per class the median over cases of the diameter of a ball of its volume.
    """
    if median_mm is None:
        return None, "no spacing is known (pictures): images keep their pixels"
    small = _too_small(median_mm, extent_mm, class_diameters_mm)
    spacing, notes = [], []
    for axis, median in zip("zyx", median_mm, strict=True):
        if median > THICK_MM:
            spacing.append(round(median, 4))
            notes.append(f"{axis} keeps its {median:.3g} mm, which is too thick to be interpolated to 1.5 mm")
        elif small and median < TARGET_MM:
            spacing.append(round(median, 4))
        else:
            spacing.append(TARGET_MM)
            if median > 1.05 * TARGET_MM:
                notes.append(f"{axis} is interpolated from {median:.3g} mm")
    chosen = (spacing[0], spacing[1], spacing[2])
    if small:
        notes.insert(0, f"median spacing of the dataset where it is finer than 1.5 mm: {small}")
    elif chosen == (TARGET_MM,) * 3:
        notes.insert(0, "1.5 mm isotropic")
    else:
        notes.insert(0, "1.5 mm")
    return chosen, "; ".join(notes)


def _too_small(
    median_mm: Spacing, extent_mm: tuple[float, float, float] | None, diameters: Mapping[str, float]
) -> str | None:
    if min(median_mm) >= TARGET_MM:
        return None
    if extent_mm is not None:
        for axis, median, extent in zip("zyx", median_mm, extent_mm, strict=True):
            if median < TARGET_MM and extent / TARGET_MM < SMALL_IMAGE_VOXELS:
                return (
                    f"at 1.5 mm the images would be {extent / TARGET_MM:.0f} voxels wide along {axis} "
                    f"(fewer than {SMALL_IMAGE_VOXELS})"
                )
    if diameters:
        name = sorted(diameters, key=lambda key: diameters[key])[ceil(len(diameters) / 10) - 1]
        if diameters[name] / TARGET_MM < SMALL_CLASS_VOXELS:
            return (
                f"at 1.5 mm '{name}' would be {diameters[name] / TARGET_MM:.1f} voxels wide "
                f"(fewer than {SMALL_CLASS_VOXELS})"
            )
    return None


def choose_orientation(
    slice_axes: Sequence[Literal["z", "y", "x"] | None], *, dims: int, is_picture: bool, needs_canonical: bool
) -> tuple[str | None, str]:
    """Choose the canonical orientation, or None to keep the axes as they are stored, and give the reason.

    Args:
        slice_axes: per case the canonical axis that its thick slices are stacked along; None without such.
        needs_canonical: the method compares cases voxel by voxel.
    """
    if is_picture:
        return None, "pictures stay as they are"
    found = sorted({axis for axis in slice_axes if axis is not None})
    if None in slice_axes or needs_canonical or found in ([], ["z"]) or (dims == 3 and len(found) == 1):
        return "RAS", "canonical"
    return None, (
        f"as stored: thick slices are stacked along {' or '.join(found)} of the canonical orientation, which "
        "would cut across them"
    )


def choose_crop(
    modalities: Sequence[Modality], *, is_picture: bool
) -> tuple[Literal["nonzero", "body", "none"], str]:
    """Choose what images are cropped to, and give the reason."""
    if is_picture:
        return "none", "pictures are kept whole"
    if "CT" in modalities:
        return "body", "CT: the air around the body is cut away"
    return "nonzero", "the box of non-zero intensities: masked or padded margins are cut away"


def choose_normalisation(
    modality: Modality, *, foreground: Mapping[str, float] | None, masked_background: bool
) -> tuple[Normalisation, str]:
    """Choose how a channel that is no colour is normalised, and give the reason.

    Args:
        foreground: ``mean``, ``std``, ``p00_5`` and ``p99_5`` of the intensities inside the classes over the
            dataset; None if no case is labelled.
        masked_background: the images are zero outside a mask.
    """
    if modality == "CT" and foreground is not None:
        constants = {key: round(float(foreground[key]), 4) for key in ("p00_5", "p99_5", "mean", "std")}
        scheme = Normalisation(
            scheme="zscore",
            low=constants["p00_5"],
            high=constants["p99_5"],
            mean=constants["mean"],
            std=max(constants["std"], 1e-4),
        )
        return scheme, "CT: clipped to the 0.5 and 99.5 percentiles of the foreground, z-score of the dataset"
    if modality == "CT":
        window = Normalisation(scheme="zscore", low=-1000.0, high=1000.0, mean=0.0, std=500.0)
        return window, "CT without labels: clipped to -1000..1000 HU, divided by 500"
    if masked_background:
        scheme = Normalisation(scheme="zscore", nonzero_only=True)
        return scheme, f"{modality}: z-score per case inside the mask, because the background is exactly 0"
    return Normalisation(scheme="zscore"), f"{modality}: z-score per case"


def choose_dims(
    possible: Sequence[Literal[2, 3]], *, is_picture: bool, median_shape: tuple[int, int, int]
) -> tuple[Literal[2, 3] | None, str]:
    """Choose slices (2) or volumes (3) and give the reason; None if the method can do neither."""
    if is_picture:
        return (2 if 2 in possible else None), "pictures have two dimensions"
    if len(possible) == 1:
        return possible[0], f"the method works in {possible[0]} dimensions"
    if median_shape[0] < THIN_VOLUME_SLICES:
        return (
            2,
            f"volumes of {median_shape[0]} slices (fewer than {THIN_VOLUME_SLICES}) have too little depth",
        )
    return possible[0], f"{median_shape[0]} slices are enough to learn in {possible[0]} dimensions"
