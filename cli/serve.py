"""``halfbyte serve``: an HTTP server with OpenAI's endpoints."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import options as opt
from .console import loading_bar
from .loading import fetch_model


@opt.flat
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
    priority_key: Annotated[
        str | None,
        typer.Option(
            "--priority-key",
            metavar="KEY",
            help="Keys that may also set a request's priority, as with --api-key "
            "(HALFBYTE_PRIORITY_KEY). Without any keys everybody may.",
        ),
    ] = None,
    served_name: opt.ServedName = None,
    max_waiting: Annotated[
        int,
        typer.Option("--max-waiting", metavar="N", min=0, help="Longest queue; beyond it, 429."),
    ] = 256,
    max_waiting_tokens: Annotated[
        int,
        typer.Option(
            "--max-waiting-tokens",
            metavar="N",
            min=0,
            help="Most prompt tokens that wait for an answer; beyond it, 429. 0 = no bound.",
        ),
    ] = 1 << 20,
    max_wait: Annotated[
        float,
        typer.Option(
            "--max-wait",
            metavar="S",
            min=0,
            help="Seconds that a request may wait for a place in the batch; then 503. "
            "0 = no bound.",
        ),
    ] = 300.0,
    max_connections: Annotated[
        int | None,
        typer.Option(
            "--max-connections",
            metavar="N",
            min=1,
            help="Most open connections; beyond it, idle ones are closed. 1024 by default, or what "
            "the limit of open files allows.",
        ),
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-hosts",
            metavar="NAME",
            help="Name that the Host header may have besides the server's own; repeatable, "
            "'*' is any. Checked by default when only this machine can connect and no key is set.",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--cors-origin",
            metavar="ORIGIN",
            help="Web origin whose pages may use the server, such as http://localhost:5173; "
            "repeatable, '*' is any. None by default.",
        ),
    ] = None,
    drain: Annotated[
        float,
        typer.Option("--drain", metavar="S", min=0, help="Seconds to finish in when stopped."),
    ] = 30.0,
    max_batch: opt.MaxBatch = 32,
    max_step_ms: Annotated[
        int | None,
        typer.Option(
            "--max-step-ms",
            metavar="MS",
            help="Longest step while an answer is being written: long prompts are cut to fit. "
            "Default 100 on a CPU, none on a GPU; 0 = none.",
        ),
    ] = None,
    max_batch_tokens: opt.MaxBatchTokens = 1024,
    kv_tokens: opt.KvTokens = 0,
    *,
    engine: opt.EngineFlags,
) -> None:
    """Serve a model over HTTP until ctrl-C; OpenAI clients use http://HOST:PORT/v1."""
    from ..engine.config import EngineConfig

    options: dict[str, Any] = engine.fields() | {
        "max_batch": max_batch,
        "max_batch_tokens": max_batch_tokens,
        "max_step_ms": max_step_ms,
        "kv_tokens": kv_tokens,
    }
    EngineConfig(**options)
    fetch_model(model)
    with loading_bar(f"loading {model}") as progress:
        from ..server import run
        from ..server.admission import QueueLimits

        run.serve(
            model,
            host=host,
            port=port,
            options={**options, "progress": progress},
            api_key=api_key,
            priority_key=priority_key,
            served_name=served_name,
            queue=QueueLimits(max_waiting, max_waiting_tokens, max_wait),
            max_connections=max_connections,
            allowed_hosts=_split(allowed_hosts),
            cors_origins=_split(cors_origin),
            drain_s=drain,
        )


def _split(values: list[str] | None) -> list[str]:
    """The entries of a repeatable option that commas may separate as well."""
    return [part for value in values or () for part in value.split(",")]
