"""The style sheet of the report, for light and dark screens and for print."""

__all__ = ["STYLE"]

STYLE = """
:root {
  --paper: #f5f7f9; --panel: #ffffff; --ink: #16202b; --soft: #5d6b7c; --line: #e2e7ed; --accent: #0b6fa4;
  --bar: rgba(11, 111, 164, .14); --warn: #b4460f;
  --c0: #0072b2; --c1: #e08a00; --c2: #009e73; --c3: #c0619a; --c4: #3f9fd8; --c5: #d55e00; --c6: #8f7a00;
  --c7: #7a5fc0; color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0e1319; --panel: #161d25; --ink: #e7ecf2; --soft: #96a3b3; --line: #29333e; --accent: #5db7ea;
    --bar: rgba(93, 183, 234, .2); --warn: #ff9a62;
    --c0: #56b4e9; --c1: #f0a92e; --c2: #2fc79b; --c3: #e08fbe; --c4: #8fd0f5; --c5: #ff8a3c; --c6: #e5d84a;
    --c7: #b39df0;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 48px 24px 72px; }

header .kicker {
  color: var(--accent); font-size: 12px; font-weight: 650; letter-spacing: .1em; text-transform: uppercase;
  margin: 0 0 8px;
}
header h1 { font-size: 34px; line-height: 1.15; letter-spacing: -.022em; margin: 0 0 12px; font-weight: 680; }
header .lead { font-size: 17px; color: var(--soft); max-width: 74ch; margin: 0 0 18px; }
header .lead b { color: var(--ink); font-weight: 630; }
.chips { display: flex; flex-wrap: wrap; gap: 8px; }
.chips span {
  border: 1px solid var(--line); background: var(--panel); border-radius: 99px; padding: 3px 12px;
  font-size: 13px; color: var(--soft);
}
.chips b { color: var(--ink); font-weight: 600; }

.cards {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(176px, 1fr)); gap: 14px; margin: 30px 0 8px;
}
.card { background: var(--panel); border: 1px solid var(--line); border-radius: 14px; padding: 16px 18px; }
.card .name { font-size: 12.5px; color: var(--soft); font-weight: 550; }
.card .value {
  font-size: 31px; font-weight: 660; letter-spacing: -.025em; line-height: 1.3;
  font-variant-numeric: tabular-nums;
}
.card .value small {
  font-size: 15px; font-weight: 500; color: var(--soft); letter-spacing: 0; margin-left: 4px;
}
.card .note { font-size: 12.5px; color: var(--soft); line-height: 1.45; }
.card.first .value { color: var(--accent); }

section { margin-top: 46px; }
h2 { font-size: 21px; letter-spacing: -.012em; margin: 0 0 4px; font-weight: 650; }
p.hint { color: var(--soft); margin: 0 0 14px; font-size: 14px; max-width: 110ch; }
.panel {
  background: var(--panel); border: 1px solid var(--line); border-radius: 14px; padding: 18px 20px;
  margin: 14px 0;
}
.panel.scroll { overflow-x: auto; padding: 10px 12px; }
.panel.long { max-height: 620px; overflow: auto; padding-top: 0; }
.panel.long th { position: sticky; top: 0; background: var(--panel); padding-top: 14px; }

table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th {
  text-align: right; font-weight: 550; color: var(--soft); font-size: 12.5px; padding: 6px 10px;
  vertical-align: bottom; border-bottom: 1px solid var(--line); white-space: nowrap;
}
td { text-align: right; padding: 7px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
th.text, td.text { text-align: left; vertical-align: top; }
td.wrap { white-space: normal; color: var(--soft); min-width: 260px; }
td.value { white-space: normal; overflow-wrap: anywhere; max-width: 360px; }
td.bar { background: linear-gradient(90deg, var(--bar) calc(var(--share) * 100%), transparent 0); }
td.warn { color: var(--warn); font-weight: 600; }
td small { color: var(--soft); }

.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(430px, 1fr)); gap: 14px 34px; }
figure { margin: 0; }
.chart figcaption { font-weight: 600; font-size: 14px; margin-bottom: 2px; }
.chart svg { width: 100%; height: auto; display: block; overflow: visible; }
.tall { max-height: 640px; overflow-x: hidden; overflow-y: auto; }
.legend {
  display: flex; flex-wrap: wrap; gap: 3px 16px; font-size: 12.5px; color: var(--soft); margin: 2px 0 8px;
}
.legend b { color: var(--ink); font-weight: 600; }
.swatch {
  display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px;
  background: currentColor;
}
svg text { font: 11.5px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
.tick { fill: var(--soft); }
.row { fill: var(--ink); }
.rule { stroke: var(--line); stroke-width: 1; }
.phase { stroke: var(--soft); stroke-dasharray: 3 4; }
.identity { stroke: var(--soft); stroke-dasharray: 5 5; }
.line { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }
.line.faint { stroke-width: 1; opacity: .28; }
.dot { fill: currentColor; fill-opacity: .6; }
.dot:hover { fill-opacity: 1; stroke: var(--ink); }
.box { fill: var(--bar); stroke: var(--c0); stroke-width: 1.2; }
.median { stroke: var(--ink); stroke-width: 2.4; }
.whisker { stroke: var(--c0); stroke-width: 1.2; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); } .c6 { color: var(--c6); } .c7 { color: var(--c7); }

.cases { display: grid; gap: 18px; }
.cases.flat { grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); }
.case { background: var(--panel); border: 1px solid var(--line); border-radius: 14px; overflow: hidden; }
.case .top { display: flex; flex-wrap: wrap; gap: 2px 12px; align-items: baseline; padding: 12px 18px; }
.case .top b { font-size: 15.5px; overflow-wrap: anywhere; }
.case .rank {
  font-size: 11.5px; font-weight: 650; letter-spacing: .07em; text-transform: uppercase; color: var(--accent);
}
.case .scores {
  color: var(--soft); font-size: 13.5px; margin-left: auto; font-variant-numeric: tabular-nums;
}
.cases.flat .top b { order: 3; width: 100%; }
.cases.flat .scores b { order: 0; width: auto; }
.case .scores b { font-size: 13.5px; color: var(--ink); }
.case img { display: block; width: 100%; background: #000; }
.case p { margin: 0; padding: 0 18px 14px; color: var(--soft); font-size: 13.5px; }
details { margin: 16px 0; }
summary { cursor: pointer; font-weight: 600; font-size: 14.5px; color: var(--accent); }
footer {
  margin-top: 56px; padding-top: 18px; border-top: 1px solid var(--line); color: var(--soft);
  font-size: 13px;
}
footer ul { padding-left: 18px; margin: 6px 0; }
footer li { margin: 4px 0; max-width: 110ch; }
@media (max-width: 560px) { .two { grid-template-columns: 1fr; } main { padding: 28px 14px; } }
@media print {
  body { background: #fff; }
  .case, .card, .panel { break-inside: avoid; }
  .tall, .panel.long { max-height: none; }
}
"""
