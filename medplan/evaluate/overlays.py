"""Pictures of a prediction over its image: outlines against the reference, in three planes, in the usual
display.

Volumes are shown in radiological convention: the patient's right on the left of the picture, anterior and
superior up, with true proportions whatever the spacing.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medplan.data.boxes import nonzero_box
from medplan.data.geometry import Geometry, canonical_axes, canonical_geometry, to_canonical
from medplan.data.images import read_image, read_label
from medplan.errors import DataError

__all__ = ["CLASS_COLOURS", "PREDICTION_COLOUR", "REFERENCE_COLOUR", "overlay", "radiological"]

REFERENCE_COLOUR = "#56B4E9"
PREDICTION_COLOUR = "#E69F00"

CLASS_COLOURS = (
    "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00", "#9A7FD1", "#17BECF", "#8C564B", "#BCBD22",
    "#E377C2", "#56B4E9", "#E69F00",
)  # fmt: skip
"""Fills that remain apart with common colour blindness (after Okabe and Ito 2008), outline colours last."""

Array = npt.NDArray[Any]
MARGIN = 0.45
INCHES, DPI = 3.2, 130
"""Of one of three planes."""
MANY_CLASSES = 20


@dataclass(frozen=True, kw_only=True)
class _View:
    """One plane: arrays (rows, columns[, RGB]), mm or pixels per row and column, letters at its edges."""

    name: str
    image: Array
    prediction: Array
    reference: Array
    pitch: tuple[float, float]
    edges: tuple[str, str, str, str]


def overlay(
    images: Sequence[Path], prediction: Path, reference: Path | None, *, keys: Sequence[str]
) -> bytes:
    """Draw one case as a JPEG.

    The first row outlines reference and prediction; with several classes a second row fills the predicted
    classes. Without a reference there is one row, which outlines every class in its own colour. Each plane
    goes through the slice with most reference (most prediction, where the reference is empty), and the view
    is cropped around both.

    Args:
        images: the files of the case; three channels of a picture are shown as colours, else the first one.
        prediction: label file.
        reference: label file on the same grid, or None.
        keys: raw values of each class as in summary.json: "3" or "(1, 2)".

    Raises: DataError if the files do not fit together.
    """
    from matplotlib.figure import Figure

    views, unit = _views(images, prediction, reference, keys)
    members = [tuple(int(value) for value in re.findall(r"-?\d+", key)) for key in keys]
    num_rows = 2 if len(keys) > 1 and reference is not None else 1
    inches = INCHES if len(views) > 1 else 1.6 * INCHES
    thickness = inches / INCHES * (1.0 if len(keys) <= MANY_CLASSES else 0.5)
    figure = Figure(figsize=(inches * len(views), inches * num_rows), dpi=DPI, facecolor="black")
    axes = figure.subplots(num_rows, len(views), squeeze=False, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
    for column, view in enumerate(views):
        for row in range(num_rows):
            _show(axes[row][column], view, unit)
        if reference is None:
            _coloured_outlines(axes[0][column], view, members, thickness=thickness)
        else:
            _outlines(axes[0][column], view, members, thickness=thickness)
        if num_rows > 1:
            _fills(axes[1][column], view, members)
    picture = io.BytesIO()
    figure.savefig(picture, format="jpeg", facecolor="black", pil_kwargs={"quality": 86, "subsampling": 0})
    return picture.getvalue()


def radiological(array: Array, geometry: Geometry) -> tuple[Array, tuple[float, float, float]]:
    """Turn an array (Z, Y, X) so that its axes grow towards the patient's head, back and left.

    Oblique axes take the nearest direction. Returns the turned view, and its spacing.
    """
    axes, flipped = canonical_axes(geometry, "LPS")
    spacing = canonical_geometry(geometry, axes=axes, flipped=flipped).spacing_mm
    return to_canonical(array, axes=axes, flipped=flipped), spacing or (1.0, 1.0, 1.0)


def _views(
    images: Sequence[Path], prediction: Path, reference: Path | None, keys: Sequence[str]
) -> tuple[list[_View], str]:
    scan = read_image(images)
    predicted, geometry = read_label(prediction)
    true = np.zeros_like(predicted) if reference is None else read_label(reference)[0]
    if not scan.array.shape[1:] == predicted.shape == true.shape:
        raise DataError(
            f"{prediction}: image, prediction and reference have shapes {scan.array.shape[1:]}, "
            f"{predicted.shape} and {true.shape}; an overlay needs one grid."
        )
    declared = {int(value) for key in keys for value in re.findall(r"-?\d+", key)}
    true = np.where(np.isin(true, list(declared)), true, 0)
    if geometry.spacing_mm is None or true.shape[0] == 1:
        pixels = np.moveaxis(scan.array[:, 0], 0, -1) if len(scan.array) == 3 else scan.array[0, 0]
        rows, columns = (geometry.spacing_mm or (1.0, 1.0, 1.0))[1:]
        flat = _View(
            name="", image=_grey_levels(pixels), prediction=predicted[0], reference=true[0],
            pitch=(rows, columns), edges=("", "", "", ""),
        )  # fmt: skip
        return [flat], "px" if geometry.spacing_mm is None else "mm"
    image, pitch = radiological(scan.array[0], geometry)
    predicted, true = radiological(predicted, geometry)[0], radiological(true, geometry)[0]
    shown = true if true.any() else predicted
    box = _window(predicted, true)
    grey = _grey_levels(image, box)
    views = []
    for axis, name, edges in ((0, "axial", "RLAP"), (1, "coronal", "RLSI"), (2, "sagittal", "APSI")):
        others = tuple(a for a in range(3) if a != axis)
        best = int(np.count_nonzero(shown, axis=others).argmax())
        cut = tuple(best if a == axis else box[a] for a in range(3))
        # Rows of the coronal and sagittal plane grow towards the head, which belongs up.
        turn = slice(None, None, 1 if axis == 0 else -1)
        views.append(
            _View(
                name=f"{name} {best + 1}/{true.shape[axis]}", image=grey[cut][turn],
                prediction=predicted[cut][turn], reference=true[cut][turn], pitch=(pitch[others[0]],
                pitch[others[1]]), edges=(edges[0], edges[1], edges[2], edges[3]),
            )
        )  # fmt: skip
    return views, "mm"


def _window(prediction: Array, reference: Array) -> tuple[slice, slice, slice]:
    """Return the box of all foreground with a generous margin, or everything where there is none."""
    box = nonzero_box(prediction, reference) or ((0, 0, 0), prediction.shape)
    slices = []
    for first, behind, size in zip(*box, prediction.shape, strict=True):
        pad = max(round(MARGIN * (behind - first)), size // 10, 4)
        slices.append(slice(max(first - pad, 0), min(behind + pad, size)))
    return slices[0], slices[1], slices[2]


def _grey_levels(image: Array, box: tuple[slice, ...] | None = None) -> Array:
    """Scale to 0..1 between robust limits of the part that is shown; colours by what their type can hold."""
    if image.ndim == 3 and box is None:
        high = float(image.max(initial=0))
        full = 1.0 if high <= 1 else 255.0 if high <= 255 else 65535.0
        scaled: Array = np.clip(image.astype(np.float32) / full, 0, 1)
        return scaled
    seen = image[box] if box else image
    low, high = (float(v) for v in np.percentile(np.nan_to_num(seen), [0.5, 99.7]))
    levels: Array = np.clip((np.nan_to_num(image).astype(np.float32) - low) / ((high - low) or 1.0), 0, 1)
    return levels


def _show(axes: Any, view: _View, unit: str) -> None:
    from matplotlib.patheffects import withStroke

    rows, columns = view.reference.shape
    height, width = rows * view.pitch[0], columns * view.pitch[1]
    axes.imshow(
        view.image, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0), interpolation="bilinear"
    )
    axes.set_axis_off()
    side = max(height, width)
    axes.set_xlim((width - side) / 2, (width + side) / 2)
    axes.set_ylim((height + side) / 2, (height - side) / 2)
    edge = [withStroke(linewidth=1.8, foreground="black")]  # white letters on bright tissue
    text = {"color": "white", "fontsize": 8.5, "transform": axes.transAxes, "path_effects": edge}
    left, right, top, bottom = view.edges
    axes.text(0.015, 0.5, left, ha="left", va="center", **text)
    axes.text(0.985, 0.5, right, ha="right", va="center", **text)
    axes.text(0.5, 0.985, top, ha="center", va="top", **text)
    axes.text(0.5, 0.015, bottom, ha="center", va="bottom", **text)
    axes.text(0.02, 0.98, view.name, ha="left", va="top", **text)
    bar = _round_length(side / 4)
    start = (width + side) / 2 - bar - 0.03 * side
    level = (height + side) / 2 - 0.035 * side
    axes.plot(
        [start, start + bar],
        [level, level],
        color="white",
        linewidth=1.6,
        solid_capstyle="butt",
        path_effects=[withStroke(linewidth=3.2, foreground="black")],
    )
    axes.text(
        start + bar / 2,
        level - 0.012 * side,
        f"{bar:g} {unit}",
        color="white",
        fontsize=7.5,
        ha="center",
        va="bottom",
        path_effects=edge,
    )


def _outlines(axes: Any, view: _View, members: Sequence[tuple[int, ...]], *, thickness: float) -> None:
    for values in members:
        _outline(axes, np.isin(view.reference, values), view.pitch, REFERENCE_COLOUR, 2.0 * thickness)
    for values in members:
        _outline(axes, np.isin(view.prediction, values), view.pitch, PREDICTION_COLOUR, 1.1 * thickness)


def _coloured_outlines(
    axes: Any, view: _View, members: Sequence[tuple[int, ...]], *, thickness: float
) -> None:
    for number, values in enumerate(members):
        colour = CLASS_COLOURS[number % len(CLASS_COLOURS)]
        _outline(axes, np.isin(view.prediction, values), view.pitch, colour, 1.4 * thickness)


def _outline(axes: Any, mask: Array, pitch: tuple[float, float], colour: str, width: float) -> None:
    if not mask.any():
        return
    padded = np.pad(mask.astype(np.float32), 1)
    rows, columns = ((np.arange(n) - 0.5) * p for n, p in zip(padded.shape, pitch, strict=True))
    axes.contour(columns, rows, padded, levels=[0.5], colors=[colour], linewidths=[width])


def _fills(axes: Any, view: _View, members: Sequence[tuple[int, ...]]) -> None:
    from matplotlib.colors import to_rgb

    rows, columns = view.prediction.shape
    layer = np.zeros((rows, columns, 4), dtype=np.float32)
    for number, values in enumerate(members):
        mask = np.isin(view.prediction, values)
        layer[mask] = (*to_rgb(CLASS_COLOURS[number % len(CLASS_COLOURS)]), 0.42)
    axes.imshow(layer, extent=(0, columns * view.pitch[1], rows * view.pitch[0], 0), interpolation="nearest")


def _round_length(length: float) -> float:
    power = 10.0 ** np.floor(np.log10(length))
    return float(max(power * m for m in (1, 2, 5) if power * m <= length))
