"""The page of a report: its style, its skeleton, and what fills it.

The file loads nothing, and runs nothing: it has no scripts, and a content security policy that
forbids them. Whatever comes from models, texts and files is escaped.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True, slots=True)
class PageChart:
    """A drawing on the page.

    Attributes:
        title: above it.
        drawing: SVG.
        caption: below it.
    """

    title: str
    drawing: Markup
    caption: str


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table on the page.

    Attributes:
        title: above it.
        heads: of its columns; empty for a list of facts.
        rows: cells.
        wide: it takes the width of the page, and no number in it is broken.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    wide: bool = False


def fill_page(
    title: str,
    subtitle: str,
    *,
    tiles: Sequence[tuple[str, str]] = (),
    verdict: str = "",
    charts: Sequence[PageChart] = (),
    tables: Sequence[PageTable] = (),
    maps: Sequence[PageChart] = (),
    worst: Sequence[Mapping[str, str]] = (),
) -> str:
    """The page, as a text in UTF-8.

    Args:
        title: of the page.
        subtitle: below it.
        tiles: figures that stand out, and what each is.
        verdict: a sentence, or "".
        charts: drawings.
        tables: behind them.
        maps: drawings behind the tables.
        worst: places of a text where two models differ.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.from_string(TEMPLATE).render(
        title=title,
        subtitle=subtitle,
        tiles=tiles,
        verdict=verdict,
        charts=charts,
        tables=tables,
        maps=maps,
        worst=worst,
    )


def visible(text: str) -> str:
    """Text without the characters that HTML forbids, or that turn the direction of what follows."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co") else "\ufffd"
        for c in text
    )


TEMPLATE = """\
{% macro grid(table) %}<table>{% if table.heads %}<tr>{% for head in table.heads %}\
<th>{{ head }}</th>{% endfor %}</tr>
{% endif %}{% for row in table.rows %}<tr><th>{{ row[0] }}</th>{% for cell in row[1:] %}\
<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endmacro %}\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --ink: #1b1f27; --soft: #5b6472; --rule: #dfe3ea;
  --data: #2563c9; --c1: #c2500f; --c2: #14804e; --c3: #8b3fb8; --c4: #8f6a00; --c5: #0b7c93;
  --c6: #b8325f; --c7: #5b6472;
  --heat: #e0662b; --good: #d9efdf; --bad: #fbdcd5; --mark: #fff0b3; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12151b; --card: #1b2029; --ink: #e6e9ef; --soft: #9aa5b5; --rule: #333b48;
  --data: #6fa8ff; --c1: #ff9d66; --c2: #5fd39a; --c3: #cf9bf0; --c4: #e5c04b; --c5: #5fd0e6;
  --c6: #ff8fb3; --c7: #b3bac6;
  --heat: #e0662b; --good: #1f4430; --bad: #5a2a23; --mark: #57491a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 20px 14px 48px; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.45rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 6px; }
p { margin: 0 0 10px; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.tiles { display: grid; gap: 10px; margin: 16px 0;
  grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); }
.tile, .card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
.tile { padding: 10px 12px; } .tile b { display: block; font-size: 1.35rem; line-height: 1.3; }
.tile span { color: var(--soft); font-size: .85rem; }
.cards { columns: 2 460px; column-gap: 14px; }
.card { padding: 14px 16px; margin: 0 0 14px; break-inside: avoid; }
.cards + .card { margin-top: 14px; }
figure { margin: 0; } svg { display: block; width: 100%; height: auto; margin: 6px 0; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg text.title { fill: var(--ink); } svg text.cell { font-size: 10.5px; fill: var(--ink); }
@media (max-width: 540px) { svg text { font-size: 16px; } svg text.cell { font-size: 14px; } }
.line { fill: none; stroke: var(--data); stroke-width: 2; } .dot, .bar { fill: var(--data); }
{% for c in range(1, 8) %}.line.c{{ c }} { stroke: var(--c{{ c }}); } \
.dot.c{{ c }} { fill: var(--c{{ c }}); }
{% endfor %}\
.line.c1, .line.c5 { stroke-dasharray: 7 3; } .line.c2, .line.c6 { stroke-dasharray: 2 3; }
.line.c3, .line.c7 { stroke-dasharray: 9 3 2 3; }
.mean { stroke: var(--heat); stroke-width: 1.5; stroke-dasharray: 5 4; }
.grid { stroke: var(--rule); } .heat { fill: var(--heat); }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: 5px 10px 5px 0;
  border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; }
th { font-weight: 500; color: var(--soft); }
.wide { overflow-x: auto; } .wide table { width: auto; min-width: 60%; }
.wide th, .wide td { white-space: nowrap; padding-right: 22px; }
ol { list-style: none; margin: 0; padding: 0; }
li { padding: 10px 0; border-top: 1px solid var(--rule); }
.text { font: .88rem/1.55 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  unicode-bidi: isolate; margin: 0 0 4px; }
.text mark { background: var(--mark); color: inherit; border-radius: 3px; }
.says { font-size: .9rem; }
.says code { border-radius: 3px; padding: 1px 4px; white-space: pre-wrap; overflow-wrap: anywhere;
  unicode-bidi: isolate; }
.says .was { background: var(--good); } .says .now { background: var(--bad); }
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<p class="soft">{{ subtitle }}</p>
</header>
<div class="tiles">
{% for value, name in tiles %}<div class="tile"><b>{{ value }}</b><span>{{ name }}</span></div>
{% endfor %}</div>
{% if verdict %}<p>{{ verdict }}</p>
{% endif %}<div class="cards">
{% for chart in charts %}<section class="card"><h2>{{ chart.title }}</h2>
<figure>{{ chart.drawing }}<figcaption>{{ chart.caption }}</figcaption></figure></section>
{% endfor %}{% for table in tables if not table.wide %}\
<section class="card"><h2>{{ table.title }}</h2>
{{ grid(table) }}</section>
{% endfor %}{% for chart in maps %}<section class="card"><h2>{{ chart.title }}</h2>
<figure>{{ chart.drawing }}<figcaption>{{ chart.caption }}</figcaption></figure></section>
{% endfor %}</div>
{% for table in tables if table.wide %}\
<section class="card wide" tabindex="0" aria-label="{{ table.title }}"><h2>{{ table.title }}</h2>
{{ grid(table) }}</section>
{% endfor %}\
{% if worst %}<section class="card"><h2>Where the models differ most</h2>
<p class="soft">The text's own token is marked; the choices are each model's most probable token
there, with its probability.</p>
<ol>
{% for token in worst %}<li><p class="text">{{ token.before }}<mark>{{ token.token }}</mark>\
{{ token.after }}</p>
<div class="says">KL <b>{{ token.kl }}</b> &middot; reference \
<code class="was">{{ token.choice_reference }}</code> {{ token.share_reference }} &middot; \
quantized <code class="now">{{ token.choice }}</code> {{ token.share }} \
<span class="soft">&middot; window {{ token.window }}, place {{ token.place }}</span></div></li>
{% endfor %}</ol></section>
{% endif %}</body>
</html>
"""
