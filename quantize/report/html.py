"""A judgement as one HTML file: charts, worst tokens in their text, settings and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ..judge import Accuracy, LayerScore
from .bootstrap import Difference
from .charts import Line, Point, bar_chart, heat_map, line_chart
from .page import PageChart, PageTable, fill_page, visible
from .sizes import ModelSize
from .worst import WorstToken

# What a token that is nothing but these looks like.
_VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}
# Settings of a run, in the order in which they are shown.
_SETTINGS = ("quantized", "reference", "text", "length", "activations")


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """A point between size and loss.

    Attributes:
        bits: bits of a weight over the matrices that were chosen for.
        kl: KL divergence, nats a token.
        name: such as ``4 bits``, or "".
    """

    bits: float
    kl: float
    name: str = ""


def render_page(
    found: Accuracy,
    worst: Sequence[WorstToken],
    settings: Mapping[str, Any],
    sizes: Sequence[ModelSize] = (),
    difference: Difference | None = None,
    tradeoffs: Sequence[Tradeoff] = (),
    sensitivity: Mapping[str, float] | None = None,
) -> str:
    """The page, as a text in UTF-8.

    Args:
        found: the judgement.
        worst: places to be shown in their text.
        settings: of the run.
        sizes: of the quantized model and of its reference.
        difference: to another run.
        tradeoffs: points of the curve of size and loss.
        sensitivity: module -> KL that it alone costs, nats a token.
    """
    names = [str(settings.get(key, "")) for key in ("quantized", "reference")]
    return fill_page(
        f"{_name(names[0])} beside {_name(names[1])}",
        f"{len(found.windows)} windows, {found.flips.places} places with a next token",
        tiles=_tiles(found),
        verdict="" if difference is None else visible(difference.sentence()),
        charts=_charts(found, tradeoffs),
        maps=_maps(found, sensitivity or {}),
        tables=_tables(found, settings, sizes),
        worst=[_shown(token) for token in worst],
    )


def _tiles(found: Accuracy) -> list[tuple[str, str]]:
    return [
        (f"{found.kl_mean:.4f}", "KL divergence, mean, nats a token"),
        (f"{found.kl_p99:.3f}", "KL divergence, 99 % of places are below"),
        (f"{100 * found.top1:.1f} %", "same first choice"),
        (f"{100 * found.flips.lost:.1f} %", "right before, wrong now"),
        (f"{found.ppl:.2f}", f"perplexity; reference {found.ppl_reference:.2f}"),
    ]


def _charts(found: Accuracy, tradeoffs: Sequence[Tradeoff]) -> list[PageChart]:
    depth = [
        Point(layer.layer, layer.residual, f"behind layer {layer.layer}: {layer.residual:.4f}")
        for layer in found.layers
    ]
    windows = [window.kl for window in found.windows]
    labels = [f"window {i}: KL {kl:.4f}" for i, kl in enumerate(windows)]
    charts = [
        PageChart(
            "Error by depth",
            line_chart([Line("", depth)], "layer", "relative error"),
            "Of the residual behind each layer, norm of the difference over the norm: what all "
            "layers up to there have done.",
        ),
        PageChart(
            "KL by window",
            bar_chart(windows, labels, "window", "KL, nats a token"),
            "Each window is a text by itself; few high bars mean that single passages suffer.",
        ),
    ]
    if tradeoffs:
        points = [
            Point(t.bits, t.kl, f"{t.bits:.2f} bits: KL {t.kl:.4f}", visible(t.name))
            for t in sorted(tradeoffs, key=lambda t: t.bits)
        ]
        charts.append(
            PageChart(
                "Size and loss",
                line_chart([Line("", points)], "bits of a weight", "KL, nats a token"),
                "What the best choice of bits for each matrix is predicted to lose.",
            )
        )
    return charts


def _maps(found: Accuracy, sensitivity: Mapping[str, float]) -> list[PageChart]:
    charts = []
    if any(layer.linears for layer in found.layers):
        charts.append(
            PageChart(
                "Error of each matrix",
                _matrices({s.module: s.relative for s in _linears(found.layers)}, "relative error"),
                "Of outputs on the reference's real inputs, norm of the difference over the norm. "
                + _undone(found.layers),
            )
        )
    if sensitivity:
        charts.append(
            PageChart(
                "Loss of each matrix",
                _matrices(sensitivity, "KL of each matrix"),
                "KL in nats a token that this matrix alone costs; all others are the reference's.",
            )
        )
    return charts


def _linears(layers: Sequence[LayerScore]) -> list[Any]:
    return [score for layer in layers for score in layer.linears]


def _undone(layers: Sequence[LayerScore]) -> str:
    scores = _linears(layers)
    count = sum(score.undone for score in scores)
    if not count:
        return ""
    return f"Scales that were folded into norms, v_proj or up_proj were undone for {count} of them."


def _matrices(values: Mapping[str, float], title: str) -> Markup:
    """A heat map, layers from the top; experts of a layer as their mean."""
    cells: dict[int, dict[str, list[float]]] = {}
    columns: dict[str, None] = {}
    for module, value in values.items():
        place = module.split("layers.", 1)[-1].split(".")
        if not place[0].isdigit():
            continue
        column = visible(place[-1].removesuffix("_proj"))
        columns[column] = None
        cells.setdefault(int(place[0]), {}).setdefault(column, []).append(value)
    lines = [
        [sum(v) / len(v) if (v := cells[layer].get(column)) else None for column in columns]
        for layer in sorted(cells)
    ]
    return heat_map([str(layer) for layer in sorted(cells)], list(columns), lines, title)


def _tables(
    found: Accuracy, settings: Mapping[str, Any], sizes: Sequence[ModelSize]
) -> list[PageTable]:
    rows = [(key, visible(str(settings[key]))) for key in _SETTINGS if key in settings]
    rows += [("windows", str(len(found.windows))), ("digest", found.digest[:16])]
    tables = [PageTable("Settings", (), rows)]
    if sizes:
        lines = [
            (
                _name(size.name),
                f"{size.nbytes / 1e6:.1f}",
                f"{size.bits:.2f}",
                f"{size.layer_bits:.2f}",
                ", ".join(visible(label) for label in size.formats[:4]),
            )
            for size in sizes
        ]
        heads = ("model", "MB", "bits a weight", "in layers", "formats")
        tables.append(PageTable("Sizes", heads, lines))
    return tables


def _shown(token: WorstToken) -> dict[str, str]:
    return {
        "before": visible(token.before),
        "token": _token(token.token),
        "after": visible(token.after),
        "choice": _token(token.choice),
        "choice_reference": _token(token.choice_reference),
        "share": f"{100 * token.share:.0f} %",
        "share_reference": f"{100 * token.share_reference:.0f} %",
        "kl": f"{token.kl:.2f}",
        "window": str(token.window),
        "place": str(token.place),
    }


def _token(text: str) -> str:
    """A token, its white space at the ends made visible."""
    text = visible(text)
    core = text.strip(" \n\t\r")
    begin = text.index(core) if core else len(text)
    ends = text[:begin], text[begin + len(core) :]
    before, after = ("".join(_VISIBLE.get(c, c) for c in end) for end in ends)
    return f"{before}{core}{after}" or "nothing"


def _name(path: str) -> str:
    """The last part of a path."""
    return visible(path.rstrip("/").rsplit("/", 1)[-1])
