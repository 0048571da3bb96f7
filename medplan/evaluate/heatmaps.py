"""Square tables of numbers that a method has learnt, drawn as coloured cells."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from medplan.evaluate.page import section

__all__ = ["heat_chart", "heatmap_sections"]

CELL, LETTER, TEXT = 16.0, 6.6, 10.0
COLD, WARM = (33, 102, 172), (178, 24, 43)
"""Colours of the lowest and the highest number; white lies between them."""


def heatmap_sections(run_folder: Path) -> str:
    """Return a section for every ``heatmaps/<name>.json`` of a run; nothing if there are none."""
    paths = sorted((run_folder / "heatmaps").glob("*.json"))
    records = [json.loads(path.read_text()) for path in paths]
    return "".join(
        section(str(record["title"]), f'<div class="panel">{heat_chart(record)}</div>') for record in records
    )


def heat_chart(record: Mapping[str, Any]) -> str:
    """Return an SVG of a `medplan.method.Heatmap` as plain data: its cells, and a scale of the colours below.

    The mouse on a cell shows its number.
    """
    names, (low, high) = [str(name) for name in record["names"]], record["limits"]
    left = LETTER * max(map(len, names), default=0) + 8
    top = left
    size = CELL * len(names)
    parts = []
    for row, (name, values) in enumerate(zip(names, record["values"], strict=True)):
        x, y = left + CELL * row + 12, top + CELL * row
        parts.append(
            f'<text class="tick" x="{left - 4:.0f}" y="{y + 12:.0f}" text-anchor="end" '
            f'font-size="{TEXT:g}">{escape(name)}</text>'
            f'<text class="tick" transform="translate({x:.0f} {top - 4:.0f}) rotate(-90)" '
            f'font-size="{TEXT:g}">{escape(name)}</text>'
        )
        for column, value in enumerate(values):
            hint = escape(f"{name} / {names[column]}: {value:.2f}")
            parts.append(
                f'<rect x="{left + CELL * column:.0f}" y="{y:.0f}" width="{CELL:g}" height="{CELL:g}" '
                f'fill="{_colour(value, low, high)}"><title>{hint}</title></rect>'
            )
    steps = [low + (high - low) * number / 8 for number in range(9)]
    scale = top + size + 12
    parts += [
        f'<rect x="{left + CELL * number:.0f}" y="{scale:.0f}" width="{CELL:g}" height="8" '
        f'fill="{_colour(value, low, high)}"/>'
        for number, value in enumerate(steps)
    ]
    parts += [
        f'<text class="tick" x="{left + CELL * (number + 0.5):.0f}" y="{scale + 20:.0f}" '
        f'text-anchor="middle" font-size="{TEXT:g}">{steps[number]:.2g}</text>'
        for number in (0, 4, 8)
    ]
    width, height = left + max(size, CELL * len(steps)) + 4, scale + 26
    label = escape(str(record["title"]), quote=True)
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )


def _colour(value: float, low: float, high: float) -> str:
    share = min(max((value - low) / ((high - low) or 1.0), 0.0), 1.0)
    end, strength = (WARM, 2 * share - 1) if share >= 0.5 else (COLD, 1 - 2 * share)
    red, green, blue = (round(255 + (channel - 255) * strength) for channel in end)
    return f"#{red:02x}{green:02x}{blue:02x}"
