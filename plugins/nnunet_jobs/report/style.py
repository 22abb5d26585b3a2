"""The report's look: one style sheet for light and dark, screen and paper. Status has its colours, everything else is grey."""

STYLE = """
:root{color-scheme:light dark;--page:#f6f7f8;--card:#fff;--text:#1b2127;--soft:#5f6b76;--line:#e2e6ea;--bar:#8494a5;
--bad:#c62828;--bad-bg:#fdecec;--look:#9a5b00;--look-bg:#fdf3e1;--good:#1f7a3d;--good-bg:#e6f4ea}
@media (prefers-color-scheme:dark){:root{--page:#14181c;--card:#1c2127;--text:#e6e9ec;--soft:#98a4af;--line:#313941;--bar:#7d8fa1;
--bad:#ff8a80;--bad-bg:#3a1f20;--look:#ffc266;--look-bg:#352a18;--good:#7fd49a;--good-bg:#1b3023}}
*{box-sizing:border-box}
body{margin:0;padding:24px 32px 48px;background:var(--page);color:var(--text);font:14px/1.45 system-ui,-apple-system,"Segoe UI",sans-serif;
font-variant-numeric:tabular-nums}
main{max-width:1320px;margin:0 auto}
h1{font-size:24px;font-weight:650;margin:0;overflow-wrap:anywhere}
h2{font-size:15px;font-weight:650;margin:0 0 10px}
h2 small,.note{font-size:13px;font-weight:400;color:var(--soft)}
.note{margin:8px 0 0}
section{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:16px 20px;margin-top:16px}
header{display:flex;flex-wrap:wrap;gap:6px 28px;align-items:center;justify-content:space-between}
.facts{display:flex;flex-wrap:wrap;gap:4px 24px;margin:4px 0 0;padding:0;list-style:none;color:var(--soft)}
.facts b{color:var(--text);font-weight:600}
.verdict{font-size:16px;font-weight:650;padding:8px 16px;border-radius:8px}
.bad{color:var(--bad)}.look{color:var(--look)}.good{color:var(--good)}
.verdict.bad{background:var(--bad-bg)}.verdict.look{background:var(--look-bg)}.verdict.good{background:var(--good-bg)}
section.bad,section.look{color:inherit;border-left:4px solid var(--bad)}section.look{border-left-color:var(--look)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%}
th,td{padding:5px 16px 5px 0;text-align:left;vertical-align:top;border-top:1px solid var(--line)}
th{font-size:12px;font-weight:500;color:var(--soft);border-top:0;white-space:nowrap}
.n{text-align:right;white-space:nowrap}
td.wrap{overflow-wrap:anywhere;min-width:13em;max-width:26em}td.file{min-width:17em}td.message{min-width:260px;max-width:720px;overflow-wrap:anywhere;white-space:pre-line}
code{font:12.5px ui-monospace,"DejaVu Sans Mono",Menlo,monospace}
a{color:inherit;text-decoration-color:var(--soft);text-underline-offset:2px}
.tally{display:flex;flex-wrap:wrap;gap:4px 18px;margin:0 0 10px;padding:0;list-style:none}
.ranges td{vertical-align:middle;white-space:nowrap;height:38px}.ranges td:first-child{width:100%;white-space:normal;min-width:110px;
overflow-wrap:anywhere}.ranges .n{min-width:74px}.ranges .shape{padding-right:10px}.ranges .shape>*{display:block;width:192px}
.ranges .high{padding-right:0;min-width:64px}td .none{display:block}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(540px,1fr));gap:20px 40px}.pair>div{min-width:0}.below{margin-top:22px}
.notes td:first-child{min-width:190px}.named{display:flex;flex-wrap:wrap;gap:0 18px;margin:0;padding:0;list-style:none}
.bars{display:block;width:192px;height:28px}.bars path{fill:var(--bar)}.bars .base,.bars .median{fill:none;stroke:var(--line)}
.bars .median{stroke:var(--text);stroke-width:1.2}
.swatch{width:11px;height:11px;margin-right:7px;vertical-align:-1px}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:0 0 12px;padding:0;list-style:none}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(132px,1fr));gap:12px 8px}
.few{grid-template-columns:repeat(auto-fill,minmax(196px,1fr))}
figure{margin:0;min-width:0;scroll-margin:16px}
.cell{aspect-ratio:1;background:#000;border-radius:4px;overflow:hidden;display:grid;place-items:center}
.cell svg{display:block;min-width:0;min-height:0}.cell path{fill:none;stroke-width:1.5;
vector-effect:non-scaling-stroke;stroke-linecap:square}
.none{color:var(--soft);font-size:12px}.cell .none{color:#9aa4ad}
figcaption{font-size:12px;line-height:1.35;margin-top:4px;color:var(--soft);overflow-wrap:anywhere}
figcaption b{display:block;font-weight:500;color:var(--text)}
.cell.bad{outline:3px solid #e53935;outline-offset:-1px}.cell.look{outline:3px solid #f0a020;outline-offset:-1px}
figure:target .cell{outline:3px solid #2f80ed}
summary{cursor:pointer;font-size:15px;font-weight:650}details table{margin-top:10px}
.rest summary{font-size:13px;font-weight:400;color:var(--soft);margin-top:8px}
footer{margin-top:20px;font-size:12px;color:var(--soft)}
@media (max-width:700px){body{padding:12px}.pair{grid-template-columns:1fr}}
@media print{body{background:#fff;padding:0}section{break-inside:avoid-page}figure{break-inside:avoid}}
"""
