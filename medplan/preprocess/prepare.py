"""One scan, in memory: turned to canonical axes, cropped, normalised and resampled."""

import logging
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medplan.data.boxes import box_slices, value_boxes
from medplan.data.geometry import Geometry, canonical_axes, canonical_geometry
from medplan.data.images import Image
from medplan.errors import DataError, PlanError
from medplan.plan.schema import DatasetPlan, Grid, Normalisation
from medplan.preprocess.atlas import Atlas
from medplan.preprocess.crop import crop_box
from medplan.preprocess.geometry import Restoration
from medplan.preprocess.normalise import normalise
from medplan.preprocess.resample import resample_image, resample_label, resampled_shape
from medplan.randomness import generator
from medplan.samples.cases import Case

__all__ = ["MAX_LOCATIONS", "class_locations", "make_atlas", "prepare"]

logger = logging.getLogger(__name__)

Voxel = tuple[int, int, int]

MAX_LOCATIONS = 4096
"""Voxels that are remembered per code, to centre patches on; 24 kB each."""


def prepare(
    image: Image,
    dataset_plan: DatasetPlan,
    grid: Grid,
    *,
    label: npt.NDArray[np.integer] | None = None,
    key: str = "",
    atlas: Atlas | None = None,
) -> tuple[Case, Restoration]:
    """Bring a scan onto a grid.

    Args:
        image: (C, Z, Y, X) as read, on its own grid.
        label: (Z, Y, X) raw values of the label file, on the same grid; None if there is none.
        key: ``<dataset>/<id>``; named in errors, and seeds the choice of `Case.locations`.
        atlas: what `grid.align_to` names (see `medplan.preprocess.align`); needed for every case but the
            atlas.

    Returns: the case with NumPy arrays, and the way back for label maps.
    Raises: DataError for NaN or infinite intensities, undeclared label values, or a label of another shape;
        PlanError if the number of channels is not the planned one, or the atlas is missing.
    """
    where = f"case '{key}'" if key else "the image"
    _check(image, dataset_plan, label, where)
    codes = None if label is None else dataset_plan.labels.encode(label, where=where)
    if label is not None and codes is not None and dataset_plan.labels.others_are_background:
        left_out = np.unique(label[(codes == 0) & (label != 0)])
        if len(left_out):
            count = int(((codes == 0) & (label != 0)).sum())
            values = ", ".join(map(str, left_out[:10])) + (", ..." if len(left_out) > 10 else "")
            logger.info("%s: %d voxels of no class (values %s) are background.", where, count, values)
    if grid.align_to is not None and key.split("/", 1)[-1] != grid.align_to:
        pixels, codes, restoration = _aligned(image, codes, dataset_plan, grid, atlas, where)
    else:
        pixels, codes, restoration = _resampled(image, codes, dataset_plan, grid, where)
    case = Case(
        key=key,
        pixels=pixels,
        codes=codes,
        spacing_mm=restoration.prepared().spacing_mm,
        locations={} if codes is None else class_locations(codes, key),
        domain=dataset_plan.domains.get(key.split("/", 1)[-1]),
    )
    return case, restoration


def make_atlas(image: Image, dataset_plan: DatasetPlan, grid: Grid) -> Atlas:
    """Bring the atlas case onto the grid without normalising it."""
    raw = (Normalisation(scheme="none"),) * len(dataset_plan.channels)
    plan = replace(dataset_plan, normalisations=raw)
    case, restoration = prepare(image, plan, replace(grid, align_to=None))
    return Atlas(volume=case.image()[0], geometry=restoration.prepared())


def class_locations(codes: npt.NDArray[np.int16], key: str) -> dict[int, npt.NDArray[np.integer]]:
    """Return per code above 0 about `MAX_LOCATIONS` voxels (n, 3) that carry it, sorted by z, y and x.

    Each slice that shows a code has at least one of its voxels among them, so that slices can be chosen by
    what they show. The choice depends on `key` and the code only. Coordinates are uint16 where they fit.
    """
    kind = np.uint16 if max(codes.shape) <= 65536 else np.int32
    locations: dict[int, npt.NDArray[np.integer]] = {}
    for code, box in sorted(value_boxes(codes).items()):
        if code <= 0:
            continue
        inside = codes[box_slices(box)] == code
        flat = np.flatnonzero(inside)
        if len(flat) > MAX_LOCATIONS:
            rng = generator("locations", key, code)
            first = np.unique(flat // inside[0].size, return_index=True)[1]
            drawn = rng.choice(len(flat), MAX_LOCATIONS, replace=False, shuffle=False)
            missing = ~np.isin(flat[first] // inside[0].size, flat[drawn] // inside[0].size)
            flat = np.sort(flat[np.concatenate([drawn, first[missing]])])
        locations[code] = (np.stack(np.unravel_index(flat, inside.shape), axis=1) + box[0]).astype(kind)
    return locations


def _check(
    image: Image, dataset_plan: DatasetPlan, label: npt.NDArray[np.integer] | None, where: str
) -> None:
    array = image.array
    if len(array) != len(dataset_plan.channels):
        raise PlanError(
            f"{where} has {len(array)} channels, but the plan of '{dataset_plan.name}' expects "
            f"{len(dataset_plan.channels)} ({', '.join(dataset_plan.channels)})."
        )
    if array.size == 0:
        raise DataError(f"{where} has no voxels: its shape (z, y, x) is {array.shape[1:]}.")
    for name, channel in zip(dataset_plan.channels, array, strict=True):
        # Minimum and maximum carry every NaN and infinity along, without a second volume.
        if not (np.isfinite(channel.min()) and np.isfinite(channel.max())):
            raise DataError(
                f"{where} has NaN or infinite intensities in channel '{name}'. "
                "Correct the file, or run 'medplan fingerprint --repair'."
            )
    if label is not None and label.shape != array.shape[1:]:
        raise DataError(
            f"{where}: the image has shape (z, y, x) {array.shape[1:]} but its label {label.shape}. "
            "Export the label again on the grid of the image."
        )


def _resampled(
    image: Image, codes: npt.NDArray[np.int16] | None, dataset_plan: DatasetPlan, grid: Grid, where: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int16] | None, Restoration]:
    axes, flipped = canonical_axes(image.geometry, grid.orientation, keeps_oblique=grid.keeps_oblique)
    canonical = canonical_geometry(image.geometry, axes=axes, flipped=flipped)
    whole = Restoration(
        native=image.geometry,
        axes=axes,
        flipped=flipped,
        lower=(0, 0, 0),
        upper=canonical.shape,
        shape=canonical.shape,
    )
    lower, upper = crop_box(
        whole.canonical(image.array),
        crop=grid.crop,
        modalities=dataset_plan.modalities,
        spacing_mm=canonical.spacing_mm,
    )
    z, y, x = (high - low for low, high in zip(lower, upper, strict=True))
    restoration = Restoration(
        native=image.geometry,
        axes=axes,
        flipped=flipped,
        lower=lower,
        upper=upper,
        shape=_target_shape((z, y, x), canonical, grid),
    )
    pixels = normalise(restoration.box(image.array), dataset_plan.normalisations)
    pixels = resample_image(pixels, restoration.shape)
    if codes is not None:
        kept = restoration.box(codes)
        lost = np.count_nonzero(codes > 0) - np.count_nonzero(kept > 0)
        if lost:
            logger.warning("%s: %d labelled voxels are cut away with what is outside the body.", where, lost)
        codes = resample_label(kept, restoration.shape)
    return pixels, codes, restoration


def _target_shape(shape: Voxel, geometry: Geometry, grid: Grid) -> Voxel:
    if grid.shape is not None:
        z, y, x = (fixed or own for fixed, own in zip(grid.shape, shape, strict=True))
        return z, y, x
    if grid.spacing_mm is None or geometry.spacing_mm is None:
        return shape
    return resampled_shape(shape, geometry.spacing_mm, grid.spacing_mm)


def _aligned(
    image: Image,
    codes: npt.NDArray[np.int16] | None,
    dataset_plan: DatasetPlan,
    grid: Grid,
    atlas: Atlas | None,
    where: str,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int16] | None, Restoration]:
    if atlas is None:
        raise PlanError(
            f"{where} should be aligned to the case '{grid.align_to}', which was not given; "
            "run 'medplan preprocess', which keeps the atlas beside the preprocessed cases."
        )
    from medplan.preprocess.align import align

    pixels, codes, restoration = align(image, codes, atlas, where=where)
    return normalise(pixels, dataset_plan.normalisations), codes, restoration
