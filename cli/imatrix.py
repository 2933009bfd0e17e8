"""``halfbyte imatrix``: an importance matrix in llama.cpp's format."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from .accuracy import Threads, opened
from .console import loading_bar


def imatrix(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Local file or folder, or a pulled model.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to make (.gguf).")],
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="Text, or .jsonl with text or messages; default: the model's own samples.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", metavar="N", help="Windows of text.")] = 32,
    length: Annotated[int, typer.Option("--length", metavar="TOKENS", help="Of a window.")] = 512,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the choice of windows.")] = 0,
    threads: Threads = 0,
) -> None:
    """Measure how large the inputs of each matrix are, for quantizers of GGUF files."""
    from halfbyte.errors import QuantizeError

    from ..engine.config import EngineConfig
    from ..quantize.calibration import calibration_windows
    from ..quantize.importance import measure_importance
    from ..quantize.write.imatrix import make_imatrix, write_imatrix

    if out.exists():
        raise QuantizeError(f"{out} exists; expected a path for a new file")
    with ExitStack() as stack:
        checkpoint = opened(stack, model)
        windows = calibration_windows(checkpoint, calibration, samples, length, seed)
        progress = stack.enter_context(loading_bar("layers"))
        means = measure_importance(checkpoint, windows, EngineConfig(threads=threads), progress)
        said = "its own samples" if calibration is None else calibration.name
        made = make_imatrix(checkpoint, means, said, length)
    write_imatrix(out, made)
    print(f"{out}: {len(made.entries)} tensors, {samples} windows of {length} tokens of {said}")
