"""``halfbyte serve``: an HTTP server with OpenAI's endpoints."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import options as opt
from .console import loading_bar
from .loading import fetch_default


def serve(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Name, local file or folder, pulled repository."),
    ] = "smollm2",
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="0.0.0.0 opens it to the network.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="0 takes a free port.")
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            help="Refuse requests without this key (several: separate by commas). Better set "
            "HALFBYTE_API_KEY: other users can read the command line.",
        ),
    ] = None,
    served_name: Annotated[
        str | None,
        typer.Option("--served-name", metavar="NAME", help="Model name that requests may use."),
    ] = None,
    max_waiting: Annotated[
        int,
        typer.Option("--max-waiting", metavar="N", min=0, help="Longest queue; beyond it, 429."),
    ] = 256,
    drain: Annotated[
        float,
        typer.Option("--drain", metavar="S", min=0, help="Seconds to finish in when stopped."),
    ] = 30.0,
    max_batch: Annotated[
        int,
        typer.Option("--max-batch", metavar="N", help="Most requests running at once."),
    ] = 32,
    max_step_ms: Annotated[
        int | None,
        typer.Option(
            "--max-step-ms",
            metavar="MS",
            help="Longest step while an answer is being written: long prompts are cut to fit. "
            "Default 100 on a CPU, none on a GPU; 0 = none.",
        ),
    ] = None,
    device: opt.Device = opt.DeviceChoice.auto,
    dtype: opt.DType = opt.DTypeChoice.auto,
    backend: opt.Backend = opt.BackendChoice.auto,
    max_context: opt.MaxContext = 0,
    threads: opt.Threads = 0,
    exact: opt.Exact = False,
    no_native: opt.NoNative = False,
    quantize: opt.Quantize = None,
) -> None:
    """Serve a model over HTTP until ctrl-C; OpenAI clients use http://HOST:PORT/v1."""
    options: dict[str, Any] = opt.engine_options(
        device, dtype, backend, max_context, threads, exact, no_native, quantize
    )
    options |= {"max_batch": max_batch, "max_step_ms": max_step_ms}
    fetch_default(model)
    with loading_bar(f"loading {model}") as progress:
        from ..server import run

        run.serve(
            model,
            host=host,
            port=port,
            options={**options, "progress": progress},
            api_key=api_key,
            served_name=served_name,
            max_waiting=max_waiting,
            drain_s=drain,
        )
