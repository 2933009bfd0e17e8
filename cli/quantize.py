"""``halfbyte quantize``: a dense model becomes a checkpoint that other engines load, too."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from halfbyte.choices import QuantizeMethod, QuantizeScheme

from .accuracy import Threads, opened
from .console import batch_bar, can_move, human_bytes, note

# Without a terminal, so many lines tell how far it is.
_LINES = 10
_FORMATS = "gptq, gptq-v2, awq, compressed-tensors, bitsandbytes, gguf:q4_0, gguf:q4_k_m, ..."


def quantize(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A dense model: folder, GGUF file or name.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What to make; must not exist.")],
    method: Annotated[
        QuantizeMethod, typer.Option("--method", help="How codes are found.")
    ] = "gptq",
    scheme: Annotated[
        QuantizeScheme | None,
        typer.Option("--scheme", help="What becomes of weights and inputs; default: 4 bits."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="NAME", help=f"{_FORMATS}; default: what goes with the method."
        ),
    ] = None,
    bits: Annotated[
        int | None, typer.Option("--bits", metavar="N", help="Of a weight, 2 to 8.")
    ] = None,
    group: Annotated[
        int | None,
        typer.Option(
            "--group",
            metavar="N",
            help="Columns that share a scale; -1 = a whole row. Default: 128, or what divides it.",
        ),
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option(
            "--sym/--asym", help="Without or with zero points; AWQ: with, others without."
        ),
    ] = None,
    static: Annotated[
        bool, typer.Option("--static", help="W8A8: one scale for all inputs of a matrix.")
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="Text, or .jsonl with text or messages; default: the model's own samples.",
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            "--imatrix", metavar="FILE", help="GGUF: an importance matrix in place of a text."
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", help="Windows to calibrate on.")
    ] = 32,
    length: Annotated[int, typer.Option("--length", metavar="TOKENS", help="Of a window.")] = 512,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the choice of windows.")] = 0,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget", metavar="BITS", help="Bits for each matrix, so many on the average."
        ),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(
            "--max-kl", metavar="NATS", help="Bits for each matrix, few as this loss allows."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, metavar="N", help="Updates of QAT.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was cut off.")
    ] = False,
    spill: Annotated[
        bool, typer.Option("--spill", help="Keep activations that wait in a file beside OUT.")
    ] = False,
    threads: Threads = 0,
) -> None:
    """Quantize a dense model and write it as a folder or a GGUF file.

    Nothing appears under OUT before everything is written and was read back and compared.
    """
    from ..engine.config import EngineConfig
    from ..quantize.host_memory import share_heap
    from ..quantize.job import QuantizeJob, run_job
    from ..quantize.recipe import QAT_STEPS, Order

    share_heap()
    text = method != "rtn" or calibration is not None
    request = Order(method, scheme, form, bits, group, symmetric, static, steps, text, imatrix)
    with ExitStack() as stack:
        checkpoint = opened(stack, model)
        job = QuantizeJob(
            checkpoint,
            out,
            request,
            calibration,
            samples,
            length,
            seed,
            budget,
            max_kl,
            resume,
            spill,
        )
        qat = method == "qat"
        total = (steps or QAT_STEPS) if qat else checkpoint.config.num_layers
        bar = stack.enter_context(batch_bar(total, "steps" if qat else "layers"))
        begin, terminal = time.monotonic(), can_move(sys.stderr)

        def progress(done: int, of: int, said: str) -> None:
            bar.update(done, samples * length * done // of, f" | {said}" if said else "")
            if not terminal and done * _LINES // of > (done - 1) * _LINES // of:
                left = (time.monotonic() - begin) * (of - done) / done
                note(f"{done}/{of} | {left:.0f} s left{' | ' * bool(said)}{said}")

        found = run_job(job, EngineConfig(activations="int8-block32", threads=threads), progress)
    error = f"; mean error of a matrix's outputs {100 * found.error:.2f} %" if found.error else ""
    seconds = time.monotonic() - begin
    size = human_bytes(found.nbytes)
    print(f"{out}: {size}, {found.bits:.2f} bits a weight{error}; {seconds:.0f} s")
