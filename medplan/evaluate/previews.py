"""One self-contained HTML page that shows predictions for which there is no reference."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from math import prod
from pathlib import Path

import numpy as np

from medplan.data.images import read_label
from medplan.data.labels import LabelSpace
from medplan.errors import DataError
from medplan.evaluate.overlays import CLASS_COLOURS, overlay
from medplan.evaluate.page import Cell, chips, document, picture, section, table
from medplan.evaluate.summary import class_keys
from medplan.records import write_text

__all__ = ["write_previews"]

logger = logging.getLogger(__name__)

MAX_PICTURES = 60
UNUSUAL = 3.0
"""How many times the median's distance to the other sizes a size may be away from it."""


@dataclass(frozen=True, kw_only=True)
class _Case:
    """One prediction: the size of each class in ml, or in pixels for pictures, and what is remarkable."""

    id: str
    path: Path
    sizes: tuple[float, ...]
    unit: str
    remarks: tuple[str, ...] = ()


def write_previews(
    predictions: Mapping[str, Path],
    output: Path,
    *,
    images: Mapping[str, tuple[Path, ...]],
    labels: LabelSpace,
    title: str,
) -> Path:
    """Write the page: unusual sizes first, each case in three planes with its classes outlined.

    Args:
        predictions: label file by case.
        output: the HTML file.
        images: the image files (one per channel) by case; cases without get no picture.
        labels: what the values mean.

    Raises: DataError if a prediction cannot be read.
    """
    cases = _remarked([_measured(name, path, labels) for name, path in sorted(predictions.items())], labels)
    cases = sorted(cases, key=lambda case: (-len(case.remarks), case.id))
    remarkable = sum(bool(case.remarks) for case in cases)
    facts = {"Cases": len(cases), "To look at first": remarkable}
    lead = "What was found, without a reference to compare it with. Nothing here says that it is right."
    header = (
        f'<header><p class="kicker">Predictions</p><h1>{escape(title)}</h1><p class="lead">{lead}</p>'
        f"{chips(facts)}</header>"
    )
    shown = "".join(_shown(case, images.get(case.id, ()), labels) for case in cases[:MAX_PICTURES])
    left = len(cases) - MAX_PICTURES
    hint = (
        "The patient's right is on the left (R). Each plane goes through the slice with most that was found."
    )
    hint += f" {left} more cases are in the table only." if left > 0 else ""
    body = (
        header
        + section("Cases", f'{_legend(labels)}<div class="cases">{shown}</div>', hint=hint)
        + section("Sizes", _sizes(cases, labels), hint="Sizes far from those of the other cases are marked.")
    )
    return write_text(document(title, body), output)


def _measured(name: str, path: Path, labels: LabelSpace) -> _Case:
    label, geometry = read_label(path)
    spacing = geometry.spacing_mm
    voxel = prod(spacing) / 1000 if spacing else 1.0
    counts = [float(np.isin(label, values).sum()) * voxel for values in labels.values]
    return _Case(id=name, path=path, sizes=tuple(counts), unit="ml" if spacing else "px")


def _remarked(cases: Sequence[_Case], labels: LabelSpace) -> list[_Case]:
    """Say of each case which class is missing, and which size is far from the others', as logarithms."""
    sizes = np.array([case.sizes for case in cases])
    logs = np.log(np.maximum(sizes, 1e-9))
    remarks: list[list[str]] = [[] for _ in cases]
    for column, name in enumerate(labels.names):
        present = sizes[:, column] > 0
        for row in np.flatnonzero(~present):
            remarks[row].append(f"no {name} found")
        if present.sum() < 4:
            continue
        middle = np.median(logs[present, column])
        usual = max(float(np.median(np.abs(logs[present, column] - middle))), 0.1)
        for row in np.flatnonzero(present & (np.abs(logs[:, column] - middle) > UNUSUAL * usual)):
            remarks[row].append(f"{name} unusually {'large' if logs[row, column] > middle else 'small'}")
    return [replace(case, remarks=tuple(said)) for case, said in zip(cases, remarks, strict=True)]


def _shown(case: _Case, images: tuple[Path, ...], labels: LabelSpace) -> str:
    words = ", ".join(case.remarks) or ", ".join(
        f"{name} {size:.3g} {case.unit}" for name, size in zip(labels.names, case.sizes, strict=True) if size
    )
    rank = '<span class="rank">look here</span>' if case.remarks else ""
    top = f'<div class="top">{rank}<b>{escape(case.id)}</b><span class="scores">{escape(words)}</span></div>'
    if not images:
        missing = "<p>Its image was not found; name the folder of the images with --images.</p>"
        return f'<article class="case">{top}{missing}</article>'
    try:
        content = overlay(images, case.path, None, keys=class_keys(labels))
    except DataError as error:
        logger.warning("No picture of '%s': %s", case.id, error)
        return f'<article class="case">{top}<p>No picture: {escape(str(error))}</p></article>'
    return f'<article class="case">{top}{picture(content, kind="jpeg", alternative=case.id)}</article>'


def _legend(labels: LabelSpace) -> str:
    items = (
        f'<span><i class="swatch" style="color:{CLASS_COLOURS[row % len(CLASS_COLOURS)]}"></i>'
        f"{escape(name)}</span>"
        for row, name in enumerate(labels.names)
    )
    return f'<div class="legend">{"".join(items)}</div>'


def _sizes(cases: Sequence[_Case], labels: LabelSpace) -> str:
    unit = cases[0].unit if cases else ""
    rows = [
        [
            Cell.text(case.id),
            *(Cell(f"{size:.3g}", "" if size else "warn") for size in case.sizes),
            Cell.text(", ".join(case.remarks)),
        ]
        for case in sorted(cases, key=lambda case: case.id)
    ]
    return table(("Case", *(f"{name} ({unit})" for name in labels.names), ""), rows)
