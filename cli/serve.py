"""``halfbyte serve``: an HTTP server with OpenAI's endpoints."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfbyte.errors import HalfbyteError

from . import options as opt
from .console import warn
from .loading import fetch_model
from .serve_options import AccessFlags, ListenFlags, QueueFlags, WatchFlags, split_values
from .serve_table import ShownStart
from .settings import ConfigOption, given_settings, misspelt_variables, written

if TYPE_CHECKING:
    from ..server.names import AskedModel
    from ..server.settings import ServerSettings


@opt.flat
def serve(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            envvar="HALFBYTE_MODEL",
            show_default="smollm2",
            help="Name, local file or folder, pulled repository: loaded at the start.",
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "--models",
            "-m",
            metavar="NAME=PATH",
            help="A model that is loaded when a request names it; repeatable. PATH alone is a name "
            "of its own.",
        ),
    ] = None,
    models_memory: Annotated[
        float,
        typer.Option(
            "--models-memory",
            metavar="GIB",
            min=0,
            help="What several models may take together, KV caches included; for another one, "
            "those go that were not used for the longest. 0 = what is free.",
        ),
    ] = 0.0,
    config: ConfigOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Take the address, show the plan from the model's headers, and end: with 0 where "
            "the server would start.",
        ),
    ] = False,
    served_name: opt.ServedName = None,
    drain: Annotated[
        float,
        typer.Option("--drain", metavar="S", min=0, help="Seconds to finish in when stopped."),
    ] = 30.0,
    files: Annotated[
        Path | None,
        typer.Option(
            "--files",
            metavar="FOLDER",
            help="Take files and batches of clients (/v1/files, /v1/batches), and keep them in "
            "this folder.",
        ),
    ] = None,
    no_page: Annotated[
        bool, typer.Option("--no-page", help="Serve the API alone, without the chat page at /.")
    ] = False,
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
    listen: ListenFlags,
    access: AccessFlags,
    queue: QueueFlags,
    watch: WatchFlags,
    engine: opt.EngineFlags,
) -> None:
    """Serve models over HTTP until ctrl-C; OpenAI clients use http://HOST:PORT/v1.

    Every option is also a variable, HALFBYTE_MAX_WAITING for --max-waiting, and a key of the file
    that --config names. docs/serving.md has all of it.
    """
    from ..engine.config import EngineConfig

    options: dict[str, Any] = engine.fields() | {
        "max_batch": max_batch,
        "max_batch_tokens": max_batch_tokens,
        "max_step_ms": max_step_ms,
        "kv_tokens": kv_tokens,
    }
    EngineConfig(**options)
    from ..server.names import asked_models
    from ..server.settings import ServerSettings, gibibytes

    settings = ServerSettings(
        listen.settings(),
        access.settings(),
        queue.limits(),
        watch.settings(),
        models_bytes=gibibytes(models_memory, "--models-memory"),
        drain_s=drain,
        files=files,
        page=not no_page,
    )
    asked = asked_models(model, split_values(models), served_name)
    if settings.watch.log_format == "json":
        _run_logged(ctx, asked, options, settings, dry_run)
        return
    for text in misspelt_variables(ctx):
        warn(text)
    with ShownStart(given_settings(ctx), sys.stdout if dry_run else sys.stderr) as report:
        _run(asked, options, settings, report, dry_run)


def _run(
    models: list[AskedModel],
    options: dict[str, Any],
    settings: ServerSettings,
    report: Any,
    dry_run: bool,
) -> None:
    """Serve, or see whether that would work. Raises HalfbyteError."""
    if not dry_run:
        for model in models:
            fetch_model(model.source)
    from ..server import run

    start = run.rehearse if dry_run else run.serve
    start(models, options=options, settings=settings, report=report)


def _run_logged(
    ctx: typer.Context,
    models: list[AskedModel],
    options: dict[str, Any],
    settings: ServerSettings,
    dry_run: bool,
) -> None:
    """The same with nothing but JSON on stderr, the error that ends it included."""
    from ..server.log import log_to_stderr, with_fields
    from ..server.start import LoggedStart, logger

    log_to_stderr("json")
    for text in misspelt_variables(ctx):
        logger.warning("%s", text)
    try:
        report = LoggedStart([asdict(one) for one in given_settings(ctx)])
        _run(models, options, settings, report, dry_run)
    except HalfbyteError as error:
        error = written(ctx, error)
        logger.error("%s", error.message, extra=with_fields(hint=error.hint))
        raise typer.Exit(1) from None
