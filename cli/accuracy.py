"""``halfbyte accuracy`` and ``perplexity``: what quantizing lost, and how well a model predicts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from halfbyte.choices import ActivationsName

from .bench import JsonFile, writable, write
from .console import columns, loading_bar, wrapped

if TYPE_CHECKING:
    from ..loaders.base import Checkpoint
    from ..quantize.judge import Accuracy
    from ..quantize.report.bootstrap import Difference
    from ..quantize.report.suggest import MatrixLoss

Text = Annotated[Path, typer.Option("--text", metavar="FILE", help="What both models read.")]
Length = Annotated[int, typer.Option("--length", metavar="TOKENS", help="Tokens of a window.")]
Count = Annotated[
    int | None,
    typer.Option("--windows", min=1, metavar="N", help="Most windows; default: the whole text."),
]
# Matrices that --suggest shows; JSON has all.
_SUGGESTED = 12
Threads = Annotated[int, typer.Option("--threads", "-t", min=0, help="0 = one for each core.")]


def accuracy(
    quantized: Annotated[str, typer.Argument(metavar="QUANT", help="The model to judge.")],
    reference: Annotated[
        str, typer.Argument(metavar="REFERENCE", help="The model that it was made from.")
    ],
    text: Text,
    windows: Count = None,
    length: Length = 512,
    layers: Annotated[
        bool, typer.Option("--layers", help="Judge every matrix on its real inputs, too.")
    ] = False,
    activations: Annotated[
        ActivationsName,
        typer.Option(
            "--activations", help="As the engine's option; float shows what the weights lost."
        ),
    ] = "float",
    threads: Threads = 0,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="FILE", help="JSON of another run on these windows: who lost less?"
        ),
    ] = None,
    html_file: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write a page with charts.")
    ] = None,
    suggest: Annotated[
        bool,
        typer.Option(
            "--suggest", help="Find the matrices worth more bits: what each alone costs in KL."
        ),
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Compare a quantized model's next-token distributions with its reference's.

    Windows of the text are independent, without a begin-of-text token. KL is in nats a token.
    """
    target, page = writable(json_file), writable(html_file, "--html")
    from ..engine.config import EngineConfig
    from ..quantize.judge import compare
    from ..quantize.report.bootstrap import compare_runs
    from ..quantize.report.html import Tradeoff, render_page
    from ..quantize.report.sizes import model_size
    from ..quantize.report.suggest import matrix_losses, predicted_curve
    from ..quantize.report.worst import worst_tokens
    from ..quantize.windows import common_windows, read_text, tokenizer_of

    words = read_text(text)
    config = EngineConfig(activations=activations, threads=threads)
    with ExitStack() as stack:
        ours, theirs = (opened(stack, name) for name in (quantized, reference))
        cut = common_windows(ours, theirs, words, length, windows)
        progress = stack.enter_context(loading_bar("layers"))
        found = compare(ours, theirs, cut, config, layers, progress)
        losses = ()
        if suggest:
            again = stack.enter_context(loading_bar("layers, each matrix by itself"))
            losses = matrix_losses(ours, theirs, cut, config=config, progress=again)
        worst = worst_tokens(found.places, cut, tokenizer_of(theirs))
        sizes = model_size(ours), model_size(theirs)
    facts = {"quantized": quantized, "reference": reference, "text": str(text)}
    facts |= {"length": length, "activations": activations, **found.to_dict()}
    facts |= {"worst": [asdict(token) for token in worst]}
    difference = None
    if against is not None:
        difference = compare_runs(found, against, {"activations": activations})
        facts["against"] = {"file": str(against), **asdict(difference)}
    tradeoffs = [Tradeoff(*point) for point in predicted_curve(losses, found.kl_mean)]
    if suggest:
        facts["suggest"] = [asdict(loss) for loss in losses]
        facts["tradeoffs"] = [asdict(point) for point in tradeoffs]
    if page is not None:
        sensitivity = {loss.module: loss.kl for loss in losses}
        shown = render_page(found, worst, facts, sizes, difference, tradeoffs, sensitivity)
        write(page, shown, "--html")
    _deliver(json_file, target, facts, lambda: render(found, difference, losses))


def perplexity(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Local file or folder, or a pulled model.")
    ],
    text: Text,
    windows: Count = None,
    length: Length = 512,
    convention: Annotated[
        Literal["hf", "llama.cpp"],
        typer.Option(
            "--convention",
            help="hf: every token of a window counts; llama.cpp: the second half, as in its tool.",
        ),
    ] = "hf",
    activations: Annotated[
        ActivationsName, typer.Option("--activations", help="As the engine's option.")
    ] = "auto",
    threads: Threads = 0,
    json_file: JsonFile = None,
) -> None:
    """Measure how well a model predicts a text: exp of the mean loss of a token."""
    target = writable(json_file)
    from ..engine.config import EngineConfig
    from ..quantize.judge import perplexity as measured
    from ..quantize.windows import cut_windows, read_text, tokenizer_of

    words = read_text(text)
    config = EngineConfig(activations=activations, threads=threads)
    with ExitStack() as stack:
        checkpoint = opened(stack, model)
        cut = cut_windows(tokenizer_of(checkpoint), words, length, windows, convention)
        progress = stack.enter_context(loading_bar("layers"))
        ppl, means = measured(checkpoint, cut, config, progress)
    facts = {"model": model, "text": str(text), "length": length, "convention": convention}
    facts |= {"activations": activations, "ppl": ppl, "windows": means}
    _deliver(
        json_file,
        target,
        facts,
        lambda: f"perplexity {ppl:.4f} over {len(means)} windows of {length} tokens",
    )


def render(
    found: Accuracy, difference: Difference | None = None, losses: Sequence[MatrixLoss] = ()
) -> str:
    """A table of the model, another run beside it, matrices as judged, those worth more bits."""
    rows = [
        ("KL divergence, mean", f"{found.kl_mean:.4f} nats"),
        ("KL divergence, 99 % below", f"{found.kl_p99:.4f} nats"),
        ("same first choice", f"{100 * found.top1:.1f} %"),
        ("right before, wrong now", f"{100 * found.flips.lost:.1f} %"),
        ("wrong before, right now", f"{100 * found.flips.gained:.1f} %"),
        ("perplexity", f"{found.ppl:.3f}"),
        ("perplexity, reference", f"{found.ppl_reference:.3f}"),
    ]
    parts = [columns(("over all windows", ""), rows)]
    if difference is not None:
        parts.append(wrapped("", difference.sentence(), indent=0))
    matrices = [
        (linear.module, f"{linear.relative:.4f}", f"{linear.cosine:.5f}")
        for layer in found.layers
        for linear in layer.linears
    ]
    if matrices:
        parts.append(columns(("matrix", "error", "cosine"), matrices))
    undone = sum(linear.undone for layer in found.layers for linear in layer.linears)
    if undone:
        parts.append(
            f"scales that were folded into norms, v_proj or up_proj were undone for {undone} of "
            f"{len(matrices)} matrices"
        )
    if losses:
        parts.append(_suggested(losses, found.kl_mean))
    return "\n\n".join(parts)


def _suggested(losses: Sequence[MatrixLoss], kl: float) -> str:
    """The matrices that gain most for a byte, and what a bit more in all of them would buy."""
    best = losses[:_SUGGESTED]
    heads = ("worth more bits", "bits", "KL", "a bit saves", "kB")
    rows = [
        (x.module, str(x.bits), f"{x.kl:.5f}", f"{x.saves:.5f}", f"{x.bytes / 1e3:.0f}")
        for x in best
    ]
    # Single losses do not add up exactly: what matters is their share.
    total = sum(loss.kl for loss in losses)
    left = kl - (sum(loss.saves for loss in best) / total * kl if total else 0.0)
    size = sum(loss.bytes for loss in best) / 1e3
    sentence = (
        f"a bit more in these {len(best)} matrices adds {size:.0f} kB; KL is predicted to fall "
        f"from {kl:.4f} to {left:.4f}"
    )
    return columns(heads, rows) + "\n\n" + wrapped("", sentence, indent=0)


def opened(stack: ExitStack, name: str) -> Checkpoint:
    """A model by name or path, closed with the stack."""
    from ..loaders import open_checkpoint
    from ..loaders.store.model_store import resolve_model

    checkpoint = open_checkpoint(resolve_model(name))
    stack.callback(checkpoint.close)
    return checkpoint


def _deliver(
    json_file: str | None, target: Path | None, facts: dict[str, Any], shown: Callable[[], str]
) -> None:
    """JSON to its file or to stdout, else what people read."""
    text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    if json_file == "-":
        print(text, end="")
        return
    if target is not None:
        write(target, text)
    print(shown())
