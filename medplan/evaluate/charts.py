"""Charts as inline SVG: crisp at any size, coloured by the page (light and dark), tooltips without script."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from medplan.evaluate.training_log import Curve

__all__ = ["Dots", "box_chart", "line_chart", "scatter_chart", "ticks"]

WIDTH, LINE_HEIGHT = 500.0, 200.0
NUM_COLOURS = 8
MAX_POINTS = 300


@dataclass(frozen=True, kw_only=True)
class Dots:
    """The values of one row of a box chart, each with the text that is shown when the mouse rests on it."""

    label: str
    values: tuple[float, ...]
    titles: tuple[str, ...]


def line_chart(
    curves: Mapping[str, Curve],
    *,
    title: str,
    phases: Sequence[tuple[str, float]] = (),
) -> str:
    """Draw curves over the training step; noisy ones are thin with their running mean on top."""
    if not curves:
        return ""
    x_high = max(max(curve.steps) for curve in curves.values())
    x_low = min(min(curve.steps) for curve in curves.values())
    shown = {name: _thin_out(curve) for name, curve in curves.items()}
    every = np.concatenate([np.asarray(curve.values) for curve in shown.values()])
    # A spike in the first steps should not flatten the rest of the curve.
    y_low, y_high = float(every.min()), float(np.percentile(every, 99.5))
    frame = _Frame(x=(x_low, x_high), y=(y_low, y_high), height=LINE_HEIGHT, bottom=26.0)
    parts = [frame.grid()]
    for name, start in list(phases)[1:]:
        x = frame.px(start)
        parts.append(f'<line class="phase" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{frame.base:.1f}"/>')
        parts.append(f'<text class="tick" x="{x + 4:.1f}" y="18">{escape(name)}</text>')
    legend = []
    for number, (name, curve) in enumerate(shown.items()):
        colour = f"c{number % NUM_COLOURS}"
        smooth = _running_mean(curve.values)
        tip = f"<title>{escape(name)}: last {curve.values[-1]:.4g}</title>"
        if len(curve.values) > 30:
            parts.append(f'<path class="line faint {colour}" d="{frame.path(curve.steps, curve.values)}"/>')
            parts.append(f'<path class="line {colour}" d="{frame.path(curve.steps, smooth)}">{tip}</path>')
        else:
            parts.append(
                f'<path class="line {colour}" d="{frame.path(curve.steps, curve.values)}">{tip}</path>'
            )
            for x, y in zip(curve.steps, curve.values, strict=True):
                parts.append(
                    f'<circle class="dot {colour}" cx="{frame.px(x):.1f}" cy="{frame.py(y):.1f}" r="2.6">'
                    f"<title>{escape(name)}: {y:.4g} at step {x:g}</title></circle>"
                )
        legend.append(
            f'<span><i class="swatch {colour}"></i>{escape(name)} <b>{curve.values[-1]:.4g}</b></span>'
        )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<div class="legend">{"".join(legend)}</div>{_svg(parts, LINE_HEIGHT, title)}</figure>'
    )


def box_chart(
    rows: Sequence[Dots], *, title: str, unit: str = "", domain: tuple[float, float] | None = None
) -> str:
    """Draw a horizontal box per row (quartiles; whiskers to 1.5 interquartile ranges) and a dot per value."""
    known = [value for row in rows for value in row.values if math.isfinite(value)]
    if not known:
        return ""
    left, pitch = 146.0, 30.0 if len(rows) <= 16 else 22.0
    height = pitch * len(rows) + 34
    frame = _Frame(
        x=domain or (0.0, 1.04 * max(known) or 1.0), y=(0, 1), height=height, left=left, bottom=26.0
    )
    parts = [frame.grid(vertical=True)]
    rng = np.random.default_rng(0)
    for number, row in enumerate(rows):
        y = 8 + pitch * (number + 0.5)
        label = row.label if len(row.label) <= 20 else row.label[:18] + "..."
        parts.append(
            f'<text class="row" x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}'
            f"<title>{escape(row.label)}</title></text>"
        )
        pairs = [(v, t) for v, t in zip(row.values, row.titles, strict=True) if math.isfinite(v)]
        if not pairs:
            parts.append(f'<text class="tick" x="{left + 6}" y="{y + 4:.1f}">no case</text>')
            continue
        values = np.asarray([value for value, _ in pairs])
        parts.append(_box(frame, values, y, pitch * 0.5))
        jitter = rng.uniform(-0.17, 0.17, len(pairs)) * pitch
        for (value, tip), shift in zip(pairs, jitter, strict=True):
            parts.append(
                f'<circle class="dot c0" cx="{frame.px(value):.1f}" cy="{y + shift:.1f}" r="3">'
                f"<title>{escape(tip)}</title></circle>"
            )
    caption = f"{title} ({unit})" if unit else title
    return (
        f'<figure class="chart"><figcaption>{escape(caption)}</figcaption>'
        f'<div class="tall">{_svg(parts, height, caption)}</div></figure>'
    )


def scatter_chart(groups: Mapping[str, Sequence[tuple[float, float, str]]], *, title: str, unit: str) -> str:
    """Draw points (reference, prediction, tooltip) on logarithmic axes with the line of identity."""
    points = [(x, y) for group in groups.values() for x, y, _ in group if x > 0 and y > 0]
    if len(points) < 2:
        return ""
    low = math.log10(min(min(point) for point in points))
    high = math.log10(max(max(point) for point in points))
    pad = max(0.06 * (high - low), 0.05)
    height = 290.0
    both = (low - pad, high + pad)
    frame = _Frame(x=both, y=both, height=height, left=68.0, bottom=42.0, logarithmic=True)
    parts = [frame.grid(vertical=True), frame.grid()]
    start, end = low - pad, high + pad
    parts.append(
        f'<line class="identity" x1="{frame.px(start):.1f}" y1="{frame.py(start):.1f}" '
        f'x2="{frame.px(end):.1f}" y2="{frame.py(end):.1f}"/>'
    )
    legend = []
    for number, (name, group) in enumerate(groups.items()):
        colour = f"c{number % NUM_COLOURS}"
        for x, y, tip in group:
            if x > 0 and y > 0:
                parts.append(
                    f'<circle class="dot {colour}" cx="{frame.px(math.log10(x)):.1f}" '
                    f'cy="{frame.py(math.log10(y)):.1f}" r="3.4"><title>{escape(tip)}</title></circle>'
                )
        legend.append(f'<span><i class="swatch {colour}"></i>{escape(name)}</span>')
    parts.append(
        f'<text class="tick" x="{WIDTH / 2:.0f}" y="{height - 4:.0f}" text-anchor="middle">'
        f"reference ({unit}), both axes logarithmic</text>"
        f'<text class="tick" transform="translate(11 {(height - 42) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">predicted ({unit})</text>'
    )
    shown = "".join(legend) if len(legend) <= 24 else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<div class="legend">{shown}</div>{_svg(parts, height, title)}</figure>'
    )


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """Return round numbers from `low` to `high`, about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


class _Frame:
    """Maps data to the drawing area and draws the grid behind it."""

    def __init__(
        self, *, x: tuple[float, float], y: tuple[float, float], height: float, left: float = 52.0,
        bottom: float = 26.0, logarithmic: bool = False,
    ) -> None:  # fmt: skip
        self.x, self.y = x, y
        self.left, self.right, self.top, self.base = left, WIDTH - 14.0, 8.0, height - bottom
        self.logarithmic = logarithmic

    def px(self, value: float) -> float:
        low, high = self.x
        return self.left + (self.right - self.left) * (value - low) / ((high - low) or 1.0)

    def py(self, value: float) -> float:
        low, high = self.y
        share = min(max((value - low) / ((high - low) or 1.0), -0.02), 1.02)
        return self.base - (self.base - self.top) * share

    def path(self, steps: Sequence[float], values: Sequence[float]) -> str:
        points = (f"{self.px(x):.1f} {self.py(y):.1f}" for x, y in zip(steps, values, strict=True))
        return "M" + "L".join(points)

    def grid(self, *, vertical: bool = False) -> str:
        """Draw lines at round values of y and number both axes; or lines and numbers of x only."""
        low, high = self.x if vertical else self.y
        if self.logarithmic:
            decades = range(math.floor(low) - 1, math.ceil(high) + 1)
            marks = [
                math.log10(m * 10.0**d) for d in decades for m in ((1, 2, 5) if high - low < 3 else (1,))
            ]
            marks = [mark for mark in marks if low <= mark <= high]
            if len(marks) < 2:  # all within less than an octave or two
                marks = [math.log10(value) for value in ticks(10**low, 10**high, count=3)]
        else:
            marks = ticks(low, high)
        parts = []
        for mark in marks:
            text = f"{float(f'{10**mark:.3g}'):,g}" if self.logarithmic else f"{mark:.6g}"
            if vertical:
                x = self.px(mark)
                parts.append(
                    f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{self.base:.1f}"/>'
                )
                parts.append(_tick(x, self.base + 16, text, "middle"))
            else:
                y = self.py(mark)
                parts.append(
                    f'<line class="rule" x1="{self.left}" x2="{self.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                )
                parts.append(_tick(self.left - 8, y + 4, text, "end"))
        if not vertical and not self.logarithmic:
            parts += [
                _tick(self.px(v), self.base + 16, f"{v:.6g}", "middle") for v in ticks(*self.x, count=6)
            ]
        return "".join(parts)


def _tick(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _svg(parts: Sequence[str], height: float, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(label, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )


def _box(frame: _Frame, values: np.ndarray[tuple[int], np.dtype[np.float64]], y: float, size: float) -> str:
    low, middle, high = (float(v) for v in np.percentile(values, [25, 50, 75]))
    reach = 1.5 * (high - low)
    least = float(values[values >= low - reach].min())
    most = float(values[values <= high + reach].max())
    px = frame.px
    return (
        f'<line class="whisker" x1="{px(least):.1f}" x2="{px(most):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<rect class="box" x="{px(low):.1f}" y="{y - size / 2:.1f}" height="{size:.1f}" rx="3" '
        f'width="{max(px(high) - px(low), 1):.1f}"/>'
        f'<line class="median" x1="{px(middle):.1f}" x2="{px(middle):.1f}" y1="{y - size / 2:.1f}" '
        f'y2="{y + size / 2:.1f}"><title>median {middle:.4g}</title></line>'
    )


def _thin_out(curve: Curve) -> Curve:
    """Average neighbouring points so that at most `MAX_POINTS` are left."""
    if len(curve.values) <= MAX_POINTS:
        return curve
    steps = np.array_split(np.asarray(curve.steps), MAX_POINTS)
    values = np.array_split(np.asarray(curve.values), MAX_POINTS)
    return Curve(
        steps=tuple(float(part.mean()) for part in steps), values=tuple(float(part.mean()) for part in values)
    )


def _running_mean(values: Sequence[float]) -> list[float]:
    """Return the mean over a centred window of a fifteenth of the curve, narrower towards the ends."""
    half = max(len(values) // 30, 1)
    total = np.concatenate([[0.0], np.cumsum(values)])
    smooth = []
    for centre in range(len(values)):
        reach = min(half, centre, len(values) - 1 - centre)
        smooth.append(float((total[centre + reach + 1] - total[centre - reach]) / (2 * reach + 1)))
    return smooth
