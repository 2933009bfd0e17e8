"""``serve``: load a model, listen, run until told to stop, drain."""

from __future__ import annotations

import gc
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from halfbyte.errors import ConfigError

from ..engine.advise.start_plan import plan_start
from ..engine.engine import Engine
from ..engine.serve.async_engine import AsyncEngine
from .app import create_app
from .connections import Connections, connection_limits, raise_file_limit
from .endpoints import OPERATIONS
from .facts import ServedModel
from .listen import (
    DrainingServer,
    host_names,
    is_loopback,
    listen,
    url_of,
    uvicorn_config,
)
from .loading import answering
from .log import log_to_stderr
from .names import model_names
from .service import OpenAIService, ServiceConfig
from .settings import ServerSettings
from .start import StartFacts, StartReport
from .tenant import Keyring
from .tracing import RequestTracer, otlp_tracer
from .uploads.routes import Uploads


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a server has before its model is loaded.

    Attributes:
        listener: listens already.
        tls: wraps its connections, or None.
        connections: bounds of them.
        hosts: names that the Host header may have, or None for any.
        facts: what is about to be served.
        tracer: makes spans, or None.
    """

    listener: socket.socket
    tls: ssl.SSLContext | None
    connections: Connections
    hosts: set[str] | None
    facts: StartFacts
    tracer: RequestTracer | None


def serve(
    model: str, *, options: dict[str, Any], settings: ServerSettings, report: StartReport
) -> None:
    """Serve a model over HTTP until SIGTERM or ctrl-C; returns after a clean end.

    The address is listened on before the model is loaded: a port in use is known at once, and
    whoever connects early is told to come back.

    Args:
        model: name, path or repository id.
        options: EngineConfig's fields.
        settings: of the server.
        report: hears of the start.

    Raises:
        HalfbyteError: the model cannot be loaded, the address cannot be taken, or the engine
            died while serving.
    """
    with _prepared(model, options, settings) as prepared:
        report.planned(prepared.facts)
        with answering(prepared.listener, prepared.tls):
            engine = Engine(model, progress=report.progress, **options)
            engine.reserve()
        # What lives until the end is not searched for garbage again: a full collection over it
        # would stop all streams for a tenth of a second.
        gc.collect()
        gc.freeze()
        report.loaded(engine.startup, engine.report.warnings)
        service = OpenAIService(
            AsyncEngine(engine),
            ServiceConfig(
                names=tuple(prepared.facts.names),
                queue=settings.queue,
                metrics_prefix=settings.watch.metrics_prefix,
            ),
            model_facts(engine, prepared.facts.plan.detail),
        )
        access = settings.access
        uploads = None if settings.files is None else Uploads(service, settings.files)

        async def drain() -> None:
            # First, so that no line of a batch is refused: it waits for the next start.
            if uploads is not None:
                await uploads.batches.close()
            await service.close(settings.drain_s)

        app = create_app(
            service,
            keyring=Keyring(access.keys, access.priority_keys),
            hosts=prepared.hosts,
            origins=access.cors_origins,
            tracer=prepared.tracer,
            uploads=uploads,
        )
        server = DrainingServer(
            uvicorn_config(app, prepared.connections, settings.listen.tls),
            prepared.connections,
            drain=drain,
            cut_short=service.cut_short,
            health=service.health,
            on_ready=lambda: report.ready(prepared.facts),
        )
        server.run_on(prepared.listener)


def rehearse(
    model: str, *, options: dict[str, Any], settings: ServerSettings, report: StartReport
) -> None:
    """All that `serve` does before it reads weights: takes the address, plans, reports.

    Arguments as for `serve`.

    Raises:
        HalfbyteError: `serve` would not start, or the memory does not suffice.
    """
    with _prepared(model, options, settings) as prepared:
        report.planned(prepared.facts)
    plan = prepared.facts.plan
    if plan.least > plan.memory.free_bytes:
        raise ConfigError(
            f"weights and workspace need {plan.least >> 20} MiB, but "
            f"{plan.memory.free_bytes >> 20} MiB are free",
            hint="take a smaller model or format, lower max_batch, or free memory",
        )


@contextmanager
def _prepared(model: str, options: dict[str, Any], settings: ServerSettings) -> Iterator[_Prepared]:
    """Everything but the engine; the address is given back at the end. Raises HalfbyteError."""
    log_to_stderr(settings.watch.log_format)
    access, where = settings.access, settings.listen
    tls = where.tls.context() if where.tls is not None else None
    connections = Connections(connection_limits(where.max_connections, raise_file_limit()))
    with ExitStack() as stack:
        tracer = None
        if settings.watch.otlp_endpoint is not None:
            tracer = otlp_tracer(settings.watch.otlp_endpoint, OPERATIONS)
            stack.callback(tracer.close)
        listener = stack.enter_context(listen(where.host, where.port))
        loopback = is_loopback(listener)
        guarded = loopback and not access.keyed
        hosts = host_names(where.host, access.allowed_hosts, guarded=guarded)
        with answering(listener, tls):
            plan = plan_start(model, options)
        facts = StartFacts(
            plan=plan,
            names=model_names(model, plan.name, settings.served_name),
            url=url_of(where.host, listener.getsockname()[1], secure=tls is not None),
            keyed=access.keyed,
            exposed=not loopback and not access.keyed,
        )
        yield _Prepared(listener, tls, connections, hosts, facts, tracer)


def model_facts(engine: Engine, kernels: str = "") -> ServedModel:
    """What the engine's loader found out about the model's files, and what computes.

    ``kernels`` says how it does, in words.
    """
    report = engine.report
    most = max(report.formats, key=lambda label: report.formats[label][1], default="")
    return ServedModel(
        report.kind,
        engine.model_config.architecture,
        most,
        sum(report.files.values()),
        engine.backend,
        kernels,
        engine.memory.kv_dtype,
    )
