"""``serve``: load a model, listen, run until told to stop, drain."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from halfbyte.errors import ConfigError

from ..engine.advise.start_plan import StartPlan, plan_start
from ..engine.engine import Engine
from ..engine.serve.async_engine import AsyncEngine
from .app import create_app
from .connections import Connections, connection_limits, raise_file_limit
from .endpoints import OPERATIONS
from .hosting.host import HostLimits, ModelHost
from .hosting.offer import Offer, planned_offer
from .kept import KeptResponses
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
from .metric_families import Exposition
from .names import AskedModel, model_names
from .page.site import ChatPage
from .service import OpenAIService, ServiceConfig
from .settings import ServerSettings
from .start import PlannedModel, StartFacts, StartReport
from .tenant import Keyring
from .tracing import RequestTracer, otlp_tracer
from .uploads.routes import Uploads


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a server has before its models are loaded.

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


class _Workshop:
    """Makes the services of a server's models.

    Args:
        models: all of them.
        options: EngineConfig's fields.
        settings: of the server.

    Attributes:
        offers: of all models.
        exposition: metrics of the server.
        kept: responses of the server.
    """

    def __init__(
        self, models: Sequence[PlannedModel], options: dict[str, Any], settings: ServerSettings
    ) -> None:
        self.offers = [planned_offer(model.plan, model.names) for model in models]
        self.exposition = Exposition(settings.watch.metrics_prefix)
        self.kept = KeptResponses(ServiceConfig().kept_bytes)
        self._models = {model.names[0]: model for model in models}
        self._options = options
        self._settings = settings

    def engine(self, offer: Offer, progress: Callable[[int, int], None] | None = None) -> Engine:
        """Load a model; what lives until it goes is not searched for garbage again."""
        model = self._models[offer.names[0]]
        options = dict(self._options)
        if len(self._models) > 1:
            memory = model.plan.memory
            options["kv_tokens"] = memory.blocks * memory.block_size
        engine = Engine(model.source, progress=progress, **options)
        engine.reserve()
        # A full collection over it would stop all streams for a tenth of a second.
        gc.collect()
        gc.freeze()
        return engine

    def service(self, offer: Offer, engine: Engine) -> OpenAIService:
        """The service of a model that is loaded."""
        return OpenAIService(
            AsyncEngine(engine),
            ServiceConfig(names=tuple(offer.names), queue=self._settings.queue),
            offer.facts,
            exposition=self.exposition,
            kept=self.kept,
        )

    async def load(self, offer: Offer) -> OpenAIService:
        """Load a model beside the event loop. Raises HalfbyteError."""
        return self.service(offer, await asyncio.to_thread(self.engine, offer))


def serve(
    models: Sequence[AskedModel],
    *,
    options: dict[str, Any],
    settings: ServerSettings,
    report: StartReport,
) -> None:
    """Serve models over HTTP until SIGTERM or ctrl-C; returns after a clean end.

    The address is listened on before a model is loaded: a port in use is known at once, and
    whoever connects early is told to come back.

    Args:
        models: one, or several of which one is loaded at the start at most.
        options: EngineConfig's fields.
        settings: of the server.
        report: hears of the start.

    Raises:
        HalfbyteError: a model cannot be loaded, the address cannot be taken, or an engine
            died while serving.
    """
    with _prepared(models, options, settings) as prepared:
        facts = prepared.facts
        report.planned(facts)
        shop = _Workshop(facts.models, options, settings)
        several = len(facts.models) > 1
        host = ModelHost(
            shop.offers,
            shop.load if several else None,
            HostLimits(
                facts.room if several else 0,
                settings.queue.requests,
                settings.queue.wait_s,
                settings.drain_s,
            ),
            exposition=shop.exposition,
            kept=shop.kept,
        )
        for model, offer in zip(facts.models, shop.offers, strict=True):
            if model.at_start:
                with answering(prepared.listener, prepared.tls, page=settings.page):
                    engine = shop.engine(offer, report.progress)
                report.loaded(engine.startup, engine.report.warnings)
                host.put(shop.service(offer, engine))
        access = settings.access
        keyring = Keyring(access.keys, access.priority_keys, access.admin_keys, access.quota)
        uploads = None
        if settings.files is not None:
            uploads = Uploads(host, settings.files, keyring=keyring)

        async def drain() -> None:
            # First, so that no line of a batch is refused: it waits for the next start.
            if uploads is not None:
                await uploads.batches.close()
            await host.close(settings.drain_s)

        app = create_app(
            host,
            keyring=keyring,
            hosts=prepared.hosts,
            origins=access.cors_origins,
            tracer=prepared.tracer,
            uploads=uploads,
            page=ChatPage() if settings.page else None,
        )
        server = DrainingServer(
            uvicorn_config(app, prepared.connections, settings.listen.tls),
            prepared.connections,
            drain=drain,
            cut_short=host.cut_short,
            health=host.health,
            on_ready=lambda: report.ready(facts),
        )
        server.run_on(prepared.listener)


def rehearse(
    models: Sequence[AskedModel],
    *,
    options: dict[str, Any],
    settings: ServerSettings,
    report: StartReport,
) -> None:
    """All that `serve` does before it reads weights: takes the address, plans, reports.

    Arguments as for `serve`.

    Raises:
        HalfbyteError: `serve` would not start, or the memory does not suffice.
    """
    with _prepared(models, options, settings) as prepared:
        report.planned(prepared.facts)
    for model in prepared.facts.models:
        plan = model.plan
        if plan.least > plan.memory.free_bytes:
            raise ConfigError(
                f"weights and workspace need {plan.least >> 20} MiB, but "
                f"{plan.memory.free_bytes >> 20} MiB are free",
                hint="take a smaller model or format, lower max_batch, or free memory",
            )


@contextmanager
def _prepared(
    models: Sequence[AskedModel], options: dict[str, Any], settings: ServerSettings
) -> Iterator[_Prepared]:
    """Everything but the engines; the address is given back at the end. Raises HalfbyteError."""
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
        with answering(listener, tls, page=settings.page):
            planned = _planned(models, options, settings.models_bytes)
        facts = StartFacts(
            models=planned,
            room=planned[0].plan.memory.free_bytes,
            url=url_of(where.host, listener.getsockname()[1], secure=tls is not None),
            keyed=access.keyed,
            exposed=not loopback and not access.keyed,
            page=settings.page,
        )
        yield _Prepared(listener, tls, connections, hosts, facts, tracer)


def _planned(
    models: Sequence[AskedModel], options: dict[str, Any], room: int
) -> list[PlannedModel]:
    """Plans and names of all models. Raises HalfbyteError."""
    planned: list[PlannedModel] = []
    # What a client may call by the name that the user gave it is no other model's by accident.
    chosen = [asked.name for asked in models if asked.name is not None]
    for asked in models:
        plan = plan_start(asked.source, options, models=len(models), room=room)
        room = plan.memory.free_bytes if len(models) > 1 else 0
        taken = {name for model in planned for name in model.names}
        taken.update(name for name in chosen if name != asked.name)
        names = model_names(asked, plan.name, taken)
        if len(models) > 1:
            _check_fits(names[0], plan)
        planned.append(PlannedModel(plan, names, asked.source, asked.at_start))
    return planned


def _check_fits(name: str, plan: StartPlan) -> None:
    """Whether a model can ever be loaded. Raises ConfigError."""
    room = plan.memory.free_bytes
    if plan.most > room:
        tokens = plan.memory.blocks * plan.memory.block_size
        raise ConfigError(
            f"the model {name!r:.60} needs {plan.most >> 20} MiB with its KV cache of {tokens} "
            f"tokens, but the models may take {room >> 20} MiB",
            hint="raise --models-memory, lower --kv-tokens or --max-batch, or free memory",
        )
