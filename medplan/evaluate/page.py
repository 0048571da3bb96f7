"""The look of the report, and small pieces of HTML. Everything that is text is escaped here."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from medplan.evaluate.summary import Interval

__all__ = ["Cell", "card", "chips", "details", "document", "number", "picture", "section", "spread", "table"]

STYLE = """
:root{--paper:#f6f7f9;--panel:#fff;--ink:#17202b;--soft:#5d6b7c;--line:#e1e6ec;--accent:#0b6fa4;
--bar:rgba(11,111,164,.15);--warn:#b4460f;--c0:#0072b2;--c1:#e08a00;--c2:#009e73;--c3:#c0619a;--c4:#3f9fd8;
--c5:#d55e00;--c6:#8f7a00;--c7:#7a5fc0;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--paper:#0f141a;--panel:#171e26;--ink:#e7ecf2;--soft:#96a3b3;
--line:#2a343f;--accent:#5db7ea;--bar:rgba(93,183,234,.2);--warn:#ff9a62;--c0:#56b4e9;--c1:#f0a92e;--c2:#2fc79b;
--c3:#e08fbe;--c4:#8fd0f5;--c5:#ff8a3c;--c6:#e5d84a;--c7:#b39df0}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:44px 24px 72px}
header h1{font-size:33px;line-height:1.15;letter-spacing:-.022em;margin:0 0 10px;font-weight:680}
header .kicker{color:var(--accent);font-size:12px;font-weight:650;letter-spacing:.1em;text-
transform:uppercase; margin:0 0 8px} header .lead{font-size:17px;color:var(--soft);max-width:70ch;margin:0 0
16px} header .lead b{color:var(--ink);font-weight:620} .chips{display:flex;flex-wrap:wrap;gap:8px} .chips
span{border:1px solid var(--line);background:var(--panel);border-radius:99px;padding:3px 12px; font-
size:13px;color:var(--soft)} .chips b{color:var(--ink);font-weight:600} .cards{display:grid;grid-template-
columns:repeat(auto-fit,minmax(176px,1fr));gap:14px;margin:30px 0 8px}
.card{background:var(--panel);border:1px solid var(--line);border-radius:14px;padding:16px 18px} .card
.name{font-size:12.5px;color:var(--soft);font-weight:550} .card .value{font-size:31px;font-
weight:660;letter-spacing:-.025em;line-height:1.25; font-variant-numeric:tabular-nums} .card .value
small{font-size:15px;font-weight:500;color:var(--soft);letter-spacing:0;margin-left:3px} .card .note{font-
size:12.5px;color:var(--soft)} .card.first .value{color:var(--accent)} section{margin-top:44px} h2{font-
size:21px;letter-spacing:-.012em;margin:0 0 4px;font-weight:650} h3{font-size:15.5px;margin:26px 0 8px;font-
weight:630} p.hint{color:var(--soft);margin:0 0 14px;font-size:14px;max-width:84ch}
.panel{background:var(--panel);border:1px solid var(--line);border-radius:14px;padding:18px 20px;margin:14px
0} .scroll{overflow-x:auto} table{border-collapse:collapse;width:100%;font-size:14px;font-variant-
numeric:tabular-nums} th{text-align:right;font-weight:550;color:var(--soft);font-size:12.5px;padding:6px
10px;vertical-align:bottom; border-bottom:1px solid var(--line);white-space:nowrap} td{text-
align:right;padding:7px 10px;border-bottom:1px solid var(--line);white-space:nowrap} tr:last-child
td{border-bottom:0} th.text,td.text{text-align:left} td.wrap{white-space:normal;overflow-
wrap:anywhere;color:var(--soft)} td.value{white-space:normal;overflow-wrap:anywhere;max-width:340px}
td.bar{background:linear-gradient(90deg,var(--bar) calc(var(--share)*100%),transparent 0)}
td.warn{color:var(--warn);font-weight:600} td small{color:var(--soft)} tr.strong td{font-weight:640}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(430px,1fr));gap:4px 28px} figure{margin:0}
.chart{margin:6px 0 14px} .chart figcaption{font-weight:600;font-size:14px;margin-bottom:2px} .chart
svg{width:100%;height:auto;display:block;overflow:visible} .tall{max-height:640px;overflow:auto}
.legend{display:flex;flex-wrap:wrap;gap:3px 16px;font-size:12.5px;color:var(--soft);margin:2px 0 6px}
.legend b{color:var(--ink);font-weight:600} .swatch{display:inline-block;width:10px;height:10px;border-
radius:3px;margin-right:6px;background:currentColor} svg text{font:12px system-ui,-apple-system,"Segoe
UI",Roboto,Arial,sans-serif} .tick{fill:var(--soft)}.row{fill:var(--ink)} .grid{stroke:var(--line);stroke-
width:1} .phase{stroke:var(--soft);stroke-dasharray:3 4} .identity{stroke:var(--soft);stroke-dasharray:5 5}
.line{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round} .line.faint{stroke-
width:1;opacity:.28} .dot{fill:currentColor;fill-opacity:.62} .dot:hover{fill-opacity:1;stroke:var(--ink)}
.box{fill:var(--bar);stroke:var(--c0);stroke-width:1.2} .median{stroke:var(--ink);stroke-width:2.4}
.whisker{stroke:var(--c0);stroke-width:1.2}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}
.c4{color:var(--c4)}.c5{color:var(--c5)}.c6{color:var(--c6)}.c7{color:var(--c7)}
.cases{display:grid;gap:18px} .case{background:var(--panel);border:1px solid var(--line);border-
radius:14px;overflow:hidden} .case .top{display:flex;flex-wrap:wrap;gap:4px 18px;align-
items:baseline;padding:13px 18px} .case .top b{font-size:16px} .case .rank{font-size:11.5px;font-
weight:650;letter-spacing:.07em;text-transform:uppercase;color:var(--accent)} .case
.scores{color:var(--soft);font-size:13.5px;margin-left:auto;font-variant-numeric:tabular-nums} .case .scores
b{font-size:13.5px;color:var(--ink)} .case img{display:block;width:100%;background:#000} .case.flat img{max-
width:520px;margin:0 auto} .case p{margin:0;padding:0 18px 14px;color:var(--soft);font-size:13.5px}
details{margin:14px 0} summary{cursor:pointer;font-weight:600;font-size:14.5px;color:var(--accent)}
footer{margin-top:56px;padding-top:18px;border-top:1px solid var(--line);color:var(--soft);font-size:13px}
footer li{margin:3px 0} @media print{body{background:#fff}.case,.card,.panel{break-inside:avoid}.tall{max-
height:none}}
"""


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


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, strong: Sequence[int] = ()) -> str:
    """Return a table; a column is headed like its first row is aligned. Rows named in `strong` stand out."""
    if not rows:
        return ""
    kinds = ["text" if "text" in cell.classes or "wrap" in cell.classes else "" for cell in rows[0]]
    head = "".join(f'<th class="{kind}">{escape(c)}</th>' for c, kind in zip(columns, kinds, strict=True))
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(f'<td class="{cell.classes}" style="{cell.style}">{cell.html}</td>' for cell in row)
        lines.append(f'<tr class="strong">{cells}</tr>' if index in strong else f"<tr>{cells}</tr>")
    return (
        f'<div class="panel scroll"><table><thead><tr>{head}</tr></thead>'
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
