"""The look of the page: one style sheet and one script, both inside the file, nothing fetched."""

# Blue and orange stay apart for every common kind of colour blindness, on grey images and on both grounds.
REFERENCE_COLOUR = "#38bdf8"
PREDICTION_COLOUR = "#fb923c"

LIGHT = """
  --ground: #f6f7f9; --panel: #ffffff; --text: #17202b; --muted: #5a6675; --line: #dfe3e9; --rule: #eceff3;
  --accent: #1d5fd1; --accent-soft: #dbe7fb; --good: #17803d; --bad: #b42318; --note: #fff7e2;
  --note-line: #e5b94b; --series-0: #1d5fd1; --series-1: #c2570c; --series-2: #17803d; --series-3: #8b3fc4;
"""
_DARK = """
  --ground: #10151c; --panel: #18202a; --text: #e7ecf2; --muted: #9aa7b6; --line: #303b48; --rule: #25303c;
  --accent: #7fb0ff; --accent-soft: #21365a; --good: #5fd08a; --bad: #ff8a7d; --note: #2c2614;
  --note-line: #a58025; --series-0: #7fb0ff; --series-1: #fba55c; --series-2: #5fd08a; --series-3: #cf9bff;
"""

CHART_CSS = """svg text { fill: var(--muted); font-size: 12px; font-family: inherit; }
svg .title { fill: var(--text); font-weight: 600; font-size: 13px; }
svg .grid { stroke: var(--rule); } svg .axis { stroke: var(--line); }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .faint { fill: none; stroke-width: 1; opacity: 0.35; }
svg .value { fill: var(--text); font-variant-numeric: tabular-nums; }
.s0 { stroke: var(--series-0); } .s1 { stroke: var(--series-1); }
.s2 { stroke: var(--series-2); } .s3 { stroke: var(--series-3); }
.f0 { fill: var(--series-0); } .f1 { fill: var(--series-1); }
.f2 { fill: var(--series-2); } .f3 { fill: var(--series-3); }
"""

CSS = f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
@media print {{ :root {{ {LIGHT} color-scheme: light; }} .scroll {{ max-height: none !important; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--ground); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }}
main, .masthead > div {{ max-width: 1240px; margin: 0 auto; padding: 0 24px; }}
.masthead {{ background: var(--panel); border-bottom: 1px solid var(--line); padding: 30px 0 22px; }}
.masthead h1 {{ margin: 2px 0 6px; font-size: 27px; line-height: 1.25; letter-spacing: -0.01em;
  overflow-wrap: anywhere; }}
.kicker {{ color: var(--accent); font-size: 12px; font-weight: 650; letter-spacing: 0.09em;
  text-transform: uppercase; }}
.lead {{ margin: 0; color: var(--muted); max-width: 80ch; }}
h2 {{ font-size: 19px; margin: 0 0 4px; letter-spacing: -0.005em; }}
h3 {{ font-size: 15px; margin: 22px 0 8px; }}
section {{ background: var(--panel); border: 1px solid var(--line); border-radius: 10px; padding: 22px 24px;
  margin: 20px 0; }}
section > p {{ margin: 4px 0 14px; color: var(--muted); max-width: 85ch; }}
section > p:last-child {{ margin-bottom: 0; }}
section > p.after {{ margin-top: 12px; max-width: none; }}
.run-title {{ margin: 40px 0 0; font-size: 22px; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(200px, 100%), 1fr)); gap: 14px;
  margin: 20px 0; }}
.card {{ background: var(--panel); border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px; }}
.card .name {{ color: var(--muted); font-size: 13px; }}
.card .value {{ font-size: 26px; font-weight: 640; letter-spacing: -0.02em; line-height: 1.3;
  font-variant-numeric: tabular-nums; }}
.card .detail {{ color: var(--muted); font-size: 13px; font-variant-numeric: tabular-nums; }}
.note {{ background: var(--note); border: 1px solid var(--note-line); border-radius: 10px;
  padding: 12px 18px; margin: 20px 0; }}
.note p {{ margin: 4px 0; max-width: 95ch; }}
.scroll {{ overflow: auto; }}
.scroll + .scroll {{ margin-top: 14px; }}
.scroll.wide svg {{ min-width: 760px; }}
.scroll.tall {{ max-height: 460px; border: 1px solid var(--line); border-radius: 8px; }}
table {{ border-collapse: collapse; width: 100%; font-size: 14px; }}
th, td {{ padding: 7px 9px; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top;
  font-variant-numeric: tabular-nums; white-space: nowrap; }}
th {{ color: var(--muted); font-weight: 600; font-size: 13px; border-bottom-color: var(--line); }}
th.text, td.text {{ text-align: left; }}
td.wrap {{ white-space: normal; overflow-wrap: anywhere; }}
tbody tr:last-child td {{ border-bottom: 0; }}
tr.total td {{ background: color-mix(in srgb, var(--accent-soft) 45%, transparent); }}
td small, th small {{ display: block; color: var(--muted); font-size: 12px; line-height: 1.4; }}
.tall th {{ position: sticky; top: 0; background: var(--panel); }}
th button {{ all: unset; cursor: pointer; }}
th button:hover {{ color: var(--accent); }}
th button:focus-visible {{ outline: 2px solid var(--accent); outline-offset: 2px; }}
th[aria-sort=ascending] button::after {{ content: " \\2191"; }}
th[aria-sort=descending] button::after {{ content: " \\2193"; }}
.good {{ color: var(--good); font-weight: 600; }} .bad {{ color: var(--bad); font-weight: 600; }}
.muted {{ color: var(--muted); }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(290px, 100%), 1fr));
  gap: 18px; }}
figure {{ margin: 0; }}
figure img {{ display: block; width: 100%; height: auto; border-radius: 8px; background: #000; }}
figcaption {{ font-size: 13px; color: var(--muted); margin-top: 7px; overflow-wrap: anywhere; }}
figcaption b {{ color: var(--text); }}
.key {{ display: inline-block; width: 18px; height: 0; border-top: 3px solid; vertical-align: middle;
  margin: 0 5px 0 14px; }}
.key:first-child {{ margin-left: 0; }}
.key.reference {{ border-color: {REFERENCE_COLOUR}; }} .key.prediction {{ border-color: {PREDICTION_COLOUR}; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr));
  gap: 18px; }}
svg {{ display: block; width: 100%; height: auto; }}
{CHART_CSS}code {{ font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere;
  white-space: pre-wrap; }}
details {{ margin-top: 14px; }} summary {{ cursor: pointer; color: var(--accent); font-size: 14px; }}
@media (max-width: 600px) {{
  main, .masthead > div {{ padding: 0 14px; }}
  section {{ padding: 18px 16px; }}
  .cards {{ grid-template-columns: 1fr 1fr; gap: 10px; }}
  .card {{ padding: 10px 13px; }} .card .value {{ font-size: 20px; }}
  th, td {{ padding: 7px 8px; }}
  .facts td {{ white-space: normal; }} .facts td:first-child {{ width: 35%; }}
}}
footer {{ color: var(--muted); font-size: 13px; padding: 8px 0 40px; }}
"""

# Click on a column head: sort by it, then the other way round; empty cells stay last.
SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
  const column = [...head.parentElement.children].indexOf(head);
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const numbers = !head.classList.contains("text");
  const key = row => row.children[column].dataset.value ?? "";
  const order = (a, b) => {
    const x = key(a), y = key(b);
    if (x === "" || y === "") return (x === "") - (y === "");
    return (numbers ? x - y : x.localeCompare(y, undefined, {numeric: true})) * (down ? -1 : 1);
  };
  body.append(...[...body.rows].sort(order));
});
"""
