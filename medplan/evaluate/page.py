"""Small pieces of HTML for the report. Everything that is text is escaped here."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from medplan.evaluate.style import STYLE
from medplan.evaluate.summary import Interval

__all__ = ["Cell", "card", "chips", "details", "document", "number", "picture", "section", "spread", "table"]

LONG_TABLE = 24
"""Tables with more rows scroll by themselves."""


@dataclass(frozen=True)
class Cell:
    """One table cell: HTML that is already escaped, CSS classes and style."""

    html: str
    classes: str = ""
    style: str = ""

    @classmethod
    def text(cls, text: object, *, classes: str = "text") -> "Cell":
        """A text, aligned to the left."""
        return cls(escape(str(text)), classes)

    @classmethod
    def share(cls, value: float, *, html: str = "") -> "Cell":
        """A score from 0 to 1 with a bar behind it."""
        if not math.isfinite(value):
            return cls(number(value))
        share = min(max(value, 0.0), 1.0)
        return cls(html or number(value), "bar", f"--share:{share:.3f}")

    @classmethod
    def failures(cls, count: int) -> "Cell":
        """A number of failures: conspicuous unless it is zero."""
        return cls(str(count), "warn" if count else "")


def document(title: str, body: str) -> str:
    """Return a whole page that loads nothing from anywhere."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>{body}</main></body></html>\n"
    )


def section(title: str, body: str, *, hint: str = "") -> str:
    explained = f'<p class="hint">{escape(hint)}</p>' if hint else ""
    return f"<section><h2>{escape(title)}</h2>{explained}{body}</section>\n" if body else ""


def card(name: str, value: str, note: str, *, first: bool = False) -> str:
    """Return one figure in large type; `value` and `note` are HTML."""
    kind = "card first" if first else "card"
    return (
        f'<div class="{kind}"><div class="name">{escape(name)}</div><div class="value">{value}</div>'
        f'<div class="note">{note}</div></div>'
    )


def details(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>" if body else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a table; a column is headed like its first row is aligned."""
    if not rows:
        return ""
    kinds = ["text" if "text" in cell.classes or "wrap" in cell.classes else "" for cell in rows[0]]
    panel = "panel scroll long" if len(rows) > LONG_TABLE else "panel scroll"
    head = "".join(f'<th class="{kind}">{escape(c)}</th>' for c, kind in zip(columns, kinds, strict=True))
    lines = []
    for row in rows:
        cells = "".join(f'<td class="{cell.classes}" style="{cell.style}">{cell.html}</td>' for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return (
        f'<div class="{panel}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def picture(content: bytes, *, kind: str, alternative: str) -> str:
    """Return an image that carries its own bytes; `kind` is jpeg or png."""
    code = base64.b64encode(content).decode("ascii")
    return f'<img src="data:image/{kind};base64,{code}" alt="{escape(alternative, quote=True)}">'


def number(value: float, digits: int = 3) -> str:
    """Format a number; what is undefined is a dash."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "&ndash;"


def spread(interval: Interval, digits: int = 3) -> str:
    """Format the bounds of an interval; empty where there are none."""
    if not math.isfinite(interval.low):
        return ""
    return f"{interval.low:.{digits}f}&ndash;{interval.high:.{digits}f}"


def chips(facts: Mapping[str, object]) -> str:
    """Return short facts side by side."""
    items = (f"<span>{escape(name)} <b>{escape(str(value))}</b></span>" for name, value in facts.items())
    return f'<div class="chips">{"".join(items)}</div>'
