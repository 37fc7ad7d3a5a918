"""HTML whose text is always escaped, and the self-contained page around it.

A run directory may come from a stranger, so two locks hold: every string that is not `Html` is
escaped where it enters a tag, and the page's security policy lets only the scripts written in this
package run, by their hashes, and nothing be loaded from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any


class Html(str):
    """Text that is HTML already: written by this package, or escaped."""

    __slots__ = ()


VOID = ("br", "meta", "input", "circle", "path", "line", "rect")  # elements without content


def escaped(child: Any) -> Html:
    """A child of a tag: `Html` as it is, None as nothing, lists joined, all else escaped."""
    if isinstance(child, Html):
        return child
    if child is None:
        return Html("")
    if isinstance(child, (list, tuple)):
        return Html("".join(map(escaped, child)))
    return Html(html.escape(str(child)))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element: `tag("td", text, class_="number")`; an attribute of None is left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{given}/>")
    return Html(f"<{name}{given}>{escaped(children)}</{name}>")


def text(child: Any) -> str:
    """What a reader sees of a child of a tag, on one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", escaped(child))).split())


def table(
    heads: Sequence[Any], rows: Iterable[Sequence[Any]], *, words: Sequence[int] = ()
) -> Html:
    """A table that scrolls sideways on a narrow screen.

    words: the columns of text, set flush left; the others are numbers, flush right.
    """
    classes = ["words" if i in words else None for i in range(len(heads))]

    def line(cell: str, values: Sequence[Any]) -> Html:
        pairs = zip(values, classes, strict=True)
        return tag("tr", [tag(cell, value, class_=each) for value, each in pairs])

    body = tag("tbody", [line("td", row) for row in rows])
    return tag("div", tag("table", tag("thead", line("th", heads)), body), class_="scroll")


def facts(pairs: Iterable[tuple[Any, Any]]) -> Html:
    """Names and values, two columns."""
    rows = [tag("tr", tag("th", name), tag("td", value)) for name, value in pairs]
    return tag("table", tag("tbody", rows), class_="facts")


def lines(*parts: Any) -> Html:
    """A heading of several lines."""
    return Html(tag("br").join(map(escaped, parts)))


def fold(summary: Any, *children: Any) -> Html:
    """Something long behind one line."""
    return tag("details", tag("summary", summary), *children)


def section(title: Any, *children: Any) -> Html:
    return tag("section", tag("h2", title), *children)


def paragraph(*children: Any, class_: str | None = None) -> Html:
    return tag("p", *children, class_=class_)


# Colours of pictures in light and in dark: ink, quiet ink, rules, faint lines, paper; blues.
SHADES = {
    "#1d2530": "#e3e8ee",
    "#5d6876": "#9ba6b3",
    "#e6eaee": "#2a323c",
    "#dde2e8": "#39424d",
    "#ffffff": "#14181d",
    "#1f4f8f": "#4a83cc",
    "#1d5fa8": "#5b9bdc",
}
# Each chart's place stands right before its data.
DRAW = """
const shades = matchMedia('(prefers-color-scheme: dark)').matches ? SHADES : {};
for (const data of document.querySelectorAll('script[type="application/json"]')) {
  const text = data.textContent.replace(/#[0-9a-f]{6}/g, (colour) => shades[colour] ?? colour);
  const figure = JSON.parse(text);
  Plotly.newPlot(data.previousElementSibling, figure.data, figure.layout,
                 {responsive: true, displaylogo: false, displayModeBar: false});
}
""".replace("SHADES", json.dumps(SHADES))

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2530; --quiet: #5d6876;
  --rule: #dde2e8; --wash: #f5f7f9; --accent: #1d5fa8; --compute: #2c66a8; --fill: #93bbe0;
  --vector: #e3a84a; --sram: #8265ad; --dram: #c4583f; --register: #5aa9a0;
  --arithmetic: #2c66a8; --leakage: #a3adb8;
  --serif: Charter, "Bitstream Charter", "Charis SIL", "Sitka Text", Cambria, Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 3.2rem 2rem 5rem; background: var(--paper);
  color: var(--ink); font: 17px/1.55 var(--serif); }
h1 { font-size: 2.1rem; line-height: 1.15; margin: 0 0 .9rem; letter-spacing: -.01em; }
h2 { font-size: 1.4rem; line-height: 1.25; margin: 3.4rem 0 .8rem; padding-top: 1.1rem;
  border-top: 1px solid var(--rule); }
h3 { font: 600 .95rem/1.4 var(--sans); margin: 2rem 0 .5rem; }
p { max-width: 46rem; margin: .6rem 0; }
p.lead { font-size: 1.2rem; line-height: 1.5; max-width: 54rem; }
p.note, figcaption { color: var(--quiet); font-size: .9rem; }
article + article { margin-top: 5rem; border-top: 3px solid var(--ink); padding-top: 2rem; }
nav { font: .85rem var(--sans); color: var(--quiet); margin: 1.2rem 0; }
a { color: var(--accent); text-underline-offset: .15em; }
code, pre { font: .85em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { font-size: .8rem; background: var(--wash); border-radius: 4px; padding: .8rem 1rem;
  overflow: auto; max-height: 26rem; }
.kicker { font: 600 .78rem var(--sans); letter-spacing: .08em; text-transform: uppercase;
  color: var(--quiet); margin: 0 0 .5rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.6rem, 1fr));
  gap: 1.2rem 1.6rem; margin: 1.8rem 0 .5rem; font-family: var(--sans); }
.figures b { display: block; font-size: 1.65rem; font-weight: 600; letter-spacing: -.02em;
  line-height: 1.2; white-space: nowrap; }
.figures span { display: block; font-size: .8rem; line-height: 1.35; color: var(--quiet); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr));
  gap: 1rem 2.6rem; align-items: start; }
figure { margin: 1rem 0; min-width: 0; }
figcaption { margin-top: .4rem; max-width: 46rem; }
.chart > div { width: 100%; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font: .8rem/1.35 var(--sans); width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { padding: .34rem .42rem; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; vertical-align: middle; }
thead th { font-weight: 600; white-space: normal; vertical-align: bottom; color: var(--quiet);
  border-bottom: 1px solid var(--quiet); }
th.words, td.words { text-align: left; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
table.facts th, table.facts td { text-align: left; white-space: normal; vertical-align: top; }
table.facts th { font-weight: 400; color: var(--quiet); width: 11rem; }
td .bar { display: inline-block; height: .65rem; border-radius: 1px; vertical-align: -.05rem;
  min-width: 1px; }
td b { font-weight: 650; }
details { margin: .8rem 0; }
summary { cursor: pointer; font: .88rem var(--sans); color: var(--accent); }
.strip { display: flex; height: 1.5rem; border-radius: 3px; overflow: hidden; margin: .5rem 0; }
.strip span { min-width: 0; box-shadow: inset -1px 0 #fff9; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; font: .84rem/1.5 var(--sans);
  padding: 0; margin: .3rem 0 .8rem; list-style: none; }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px;
  margin-right: .4rem; }
.compute { background: var(--compute); } .fill { background: var(--fill); }
.vector { background: var(--vector); } .sram { background: var(--sram); }
.dram { background: var(--dram); } .arithmetic { background: var(--arithmetic); }
.register { background: var(--register); } .leakage { background: var(--leakage); }
svg { display: block; max-width: 100%; height: auto; font-family: var(--sans); }
.graph svg { min-width: 20rem; max-width: 36rem; }
td svg { max-width: none; }
td .wrapped { display: inline-block; white-space: normal; min-width: 7rem; }
.value { margin-right: .7rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: 0; padding: 0;
  list-style: none; }
td small { display: block; font-size: .72rem; color: var(--quiet); }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr));
  gap: 1.2rem; }
.curves figure { margin: 0; }
.curves figcaption { font: .78rem/1.35 var(--sans); }
#live { margin: 0 0 2.6rem; font: .85rem var(--sans); color: var(--quiet); }
#live pre { margin: 0 0 .4rem; color: var(--ink); white-space: pre-wrap; }
@media (max-width: 600px) { body { padding: 1.6rem 1rem 3rem; font-size: 16px; }
  h1 { font-size: 1.6rem; } h2 { margin-top: 2.4rem; } p.lead { font-size: 1.08rem; }
  .figures b { font-size: 1.35rem; } th, td { padding: .3rem; } table.facts th { width: 8rem; } }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #14181d; --ink: #e3e8ee; --quiet: #9ba6b3; --rule: #2a323c; --wash: #1c2229;
    --accent: #7fb2ea; }
DARK }
@media print { body { max-width: none; padding: 0; } section, figure { break-inside: avoid-page; } }
"""


def _dark() -> str:
    """The rules that give the pictures drawn here their dark colours."""
    return "\n".join(
        f'  svg:not(.main-svg) [{part}="{light}"] {{ {part}: {dark}; }}'
        for light, dark in SHADES.items()
        for part in ("fill", "stroke")
    ) + "\n".join(  # the keys of pictures
        f'  i[style="background:{light}"] {{ background: {dark} !important; }}'
        for light, dark in SHADES.items()
    )


def page(title: str, *children: Any, script: str | None = None) -> str:
    """The whole file: style, content, plotly.js and what draws the pictures, in one text.

    script: of a page that is served; it may ask its server.
    """
    from plotly.offline import get_plotlyjs

    scripts = [get_plotlyjs(), DRAW, *([script] if script else [])]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
        + ("; connect-src 'self'" if script else "")
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(STYLE.replace("DARK", _dark()))),
    )
    body = tag(
        "body",
        tag("main", *children),
        tag("noscript", paragraph("The charts need JavaScript; tables and text are complete.")),
        [tag("script", Html(script)) for script in scripts],
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
