"""Predictions of a card as JSON and as markdown; everything in them says that it is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from halfbyte.errors import ConfigError

from ...kernels.device.gpus import Gpu
from .floors import LAYERS, markdown
from .predict import PREDICTED_ROWS, Predictor


def prediction(
    card: Gpu, layers: Sequence[str] = (), rows: Sequence[int] | None = None
) -> dict[str, Any]:
    """Layers and decode steps of a card in plain JSON types.

    Args:
        card: a listed GPU.
        layers: parts of layer names such as ``8B``; empty = all.
        rows: M of the layers and batches of the steps; by default the usual ones.

    Raises:
        ConfigError: nothing is predicted for the card, or no layer is called that.
    """
    predictor = Predictor(card)
    wanted = [x for x in LAYERS if not layers or any(part in x.name for part in layers)]
    if not wanted:
        known = ", ".join(x.name for x in LAYERS)
        raise ConfigError(f"no layer is called {', '.join(layers)}; known: {known}")
    counts = tuple(rows or PREDICTED_ROWS)
    return {
        "kind": "prediction",
        "card": card.name,
        "assumed": asdict(predictor.assumed),
        "predicted_layers": [predictor.product(x, m).to_dict() for m in counts for x in wanted],
        "predicted_steps": [predictor.step(batch).to_dict() for batch in counts],
    }


def prediction_text(told: dict[str, Any]) -> str:
    """What :func:`prediction` gives as markdown tables."""
    head = (
        f"{told['card']}: predictions, not measured. Microseconds; `stream` is the time of memory, "
        "of the loop's instructions, or of the port to the second cache."
    )
    heads = ("layer", "M", "floor", "predicted", "share", "stream", "of", "split end", "how")
    lines: list[tuple[str, ...]] = [heads]
    for x in told["predicted_layers"]:
        terms = x["terms"]
        end = terms["arrive"] + terms["join"]
        figures = (x["floor_us"], x["predicted_us"])
        lines.append(
            (
                *(x["name"], str(x["rows"]), *(f"{us:.1f}" for us in figures)),
                *(f"{x['share_of_floor']:.0%}", f"{terms['stream']:.1f}", x["bound"]),
                *(f"{end:.2f}", x["note"]),
            )
        )
    steps = told["predicted_steps"]
    kinds = tuple(steps[0]["kinds"])
    titles = ("8B step", "floor", "predicted", "share", "tok/s", "launches", *kinds)
    table: list[tuple[str, ...]] = [(*titles, "gaps", "host")]
    for x in steps:
        spent = (us for _, us in x["kinds"].values())
        table.append(
            (
                f"batch {x['batch']}, context {x['context']}",
                *(f"{us:.0f}" for us in (x["floor_us"], x["predicted_us"])),
                *(f"{x['share_of_floor']:.0%}", f"{x['predicted_tokens_per_second']:.0f}"),
                *(str(x["launches"]), *(f"{us:.0f}" for us in spent)),
                *(f"{x['gaps_us']:.0f}", f"{x['host_us']:.0f}"),
            )
        )
    return "\n\n".join([head, markdown(lines), markdown(table)])
