"""``halfbyte finetune``: low-rank adapters over a model, quantized or not (LoRA, QLoRA)."""

from __future__ import annotations

import json
import math
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..loaders.model.schemes import SchemeName
from .bench import JsonFile, names, writable, write
from .console import batch_bar, can_move, note

if TYPE_CHECKING:
    from ..loaders.base import Checkpoint
    from ..quantize.train.qlora import AdapterSettings, Finetuned
    from ..quantize.windows import Windows

# Without a terminal, so many lines tell how far it is.
_LINES = 10


def finetune(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Local file or folder, or a pulled model.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    text: Annotated[Path, typer.Option("--text", metavar="FILE", help="What to learn from.")],
    held_out: Annotated[
        Path | None,
        typer.Option("--held-out", metavar="FILE", help="Another text, judged before and after."),
    ] = None,
    quantize: Annotated[
        SchemeName | None,
        typer.Option("--quantize", help="Round the linear layers of an unquantized model first."),
    ] = None,
    rank: Annotated[int, typer.Option("--rank", metavar="R", help="Columns of A and B.")] = 16,
    alpha: Annotated[
        float, typer.Option("--alpha", metavar="X", help="Adapters are scaled by alpha / rank.")
    ] = 32,
    dropout: Annotated[
        float, typer.Option("--dropout", metavar="P", help="Share of inputs left out.")
    ] = 0.0,
    targets: Annotated[
        str, typer.Option("--targets", metavar="NAME,..", help="Modules that get adapters.")
    ] = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
    steps: Annotated[int, typer.Option("--steps", metavar="N", help="Updates.")] = 200,
    rate: Annotated[float, typer.Option("--rate", metavar="X", help="Adam's rate.")] = 2e-4,
    length: Annotated[
        int, typer.Option("--length", metavar="TOKENS", help="Tokens of a window.")
    ] = 256,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", help="Windows that an update sees.")
    ] = 4,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of all that is drawn.")] = 0,
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute", help="Compute layers again on the way back: less memory, more time."
        ),
    ] = False,
    threads: Annotated[
        int, typer.Option("--threads", "-t", min=0, help="0 = one for each core.")
    ] = 0,
    json_file: JsonFile = None,
) -> None:
    """Train adapters (LoRA) on a text, over a model whose own weights stay as they are.

    OUT gets adapter_config.json and adapter_model.safetensors as PEFT reads them. It appears when
    all is done: a run that is interrupted leaves nothing.
    """
    target = writable(json_file)
    import torch

    from ..engine.backends.cpu_cores import physical_cores
    from ..loaders import open_checkpoint
    from ..loaders.model.quantizing import QuantizingCheckpoint
    from ..loaders.store.model_store import resolve_model
    from ..quantize.train.adapter_file import check_absent, save_adapters
    from ..quantize.train.loop import Course
    from ..quantize.train.qlora import AdapterSettings, check_targets
    from ..quantize.windows import cut_windows, read_text, tokenizer_of

    check_absent(out)
    course = Course(steps, batch, seed=seed, recompute=recompute)
    settings = AdapterSettings(rank, alpha, dropout, names(targets), rate, course)
    torch.set_num_threads(threads or physical_cores())
    path = resolve_model(model)
    with ExitStack() as stack:
        checkpoint: Checkpoint = stack.enter_context(closing(open_checkpoint(path)))
        if quantize is not None:
            checkpoint = QuantizingCheckpoint(checkpoint, quantize)
        check_targets(checkpoint, settings.targets)
        tokenizer = tokenizer_of(checkpoint)
        windows = cut_windows(tokenizer, read_text(text), length)
        judged = None
        if held_out is not None:
            judged = cut_windows(tokenizer, read_text(held_out), length)
        done, seconds = _trained(checkpoint, windows, settings, judged)
    save_adapters(out, done.adapters, settings, str(path))
    facts: dict[str, Any] = {"model": model, "quantize": quantize, "text": str(text)}
    facts |= {"rank": rank, "alpha": alpha, "dropout": dropout, "targets": list(settings.targets)}
    facts |= {"steps": steps, "rate": rate, "length": length, "batch": batch, "seed": seed}
    facts |= {"windows": len(windows.ids), "seconds": seconds, "losses": done.curve}
    facts |= {"tokens_per_s": steps * batch * length / seconds, "held_out": str(held_out or "")}
    shown = [
        f"{out}: {len(done.adapters)} adapters of rank {rank}",
        f"loss {done.curve[0]:.4f} -> {done.curve[-1]:.4f} nats a token in {steps} steps, "
        f"{facts['tokens_per_s']:.0f} tokens/s",
    ]
    if done.before is not None and done.after is not None:
        facts |= {"ppl_before": math.exp(done.before), "ppl_after": math.exp(done.after)}
        shown.append(
            f"perplexity of {held_out}: {facts['ppl_before']:.3f} -> {facts['ppl_after']:.3f}"
        )
    lines = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    if json_file == "-":
        print(lines, end="")
        return
    if target is not None:
        write(target, lines)
    print("\n".join(shown))


def _trained(
    checkpoint: Checkpoint,
    windows: Windows,
    settings: AdapterSettings,
    held_out: Windows | None,
) -> tuple[Finetuned, float]:
    """Adapters, and seconds of training; shows how far it is."""
    from ..quantize.train.qlora import train_adapters

    course, terminal = settings.course, can_move(sys.stderr)
    step_tokens, taken = course.batch * windows.length, 0
    start = time.monotonic()
    with ExitStack() as stack:
        bar = stack.enter_context(batch_bar(course.steps, "steps"))

        def progress(step: int, steps: int, loss: float) -> None:
            nonlocal taken
            taken = step
            bar.update(step, step * step_tokens, f" | loss {loss:.4f}")
            if not terminal and step * _LINES // steps > (step - 1) * _LINES // steps:
                speed = step * step_tokens / (time.monotonic() - start)
                left = (steps - step) * step_tokens / speed
                note(
                    f"{step}/{steps} steps | {speed:.0f} tok/s | {left:.0f} s left | "
                    f"loss {loss:.4f}"
                )

        try:
            done = train_adapters(checkpoint, windows, settings, held_out, progress)
        except KeyboardInterrupt:
            stack.close()
            note(f"stopped after {taken} of {course.steps} steps; nothing was written")
            raise
    return done, time.monotonic() - start
