"""``serve``: load a model, listen, run until told to stop, drain."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.errors import ConfigError

from ..engine.engine import Engine
from ..engine.serve.async_engine import AsyncEngine
from .admission import QueueLimits
from .app import create_app
from .connections import Connections, connection_limits, raise_file_limit
from .facts import ServedModel
from .listen import (
    DrainingServer,
    check_origins,
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
from .tenant import Keyring

KEY_VARIABLE = "HALFBYTE_API_KEY"
PRIORITY_KEY_VARIABLE = "HALFBYTE_PRIORITY_KEY"


def serve(
    model: str,
    *,
    host: str,
    port: int,
    options: dict[str, Any],
    api_key: str | None = None,
    priority_key: str | None = None,
    served_name: str | None = None,
    queue: QueueLimits | None = None,
    max_connections: int | None = None,
    allowed_hosts: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
    drain_s: float = 30.0,
) -> None:
    """Serve a model over HTTP until SIGTERM or ctrl-C; returns after a clean end.

    The address is listened on before the model is loaded: a port in use is known at once, and
    whoever connects early is told to come back.

    Args:
        model: name, path or repository id.
        host: address or name to listen on.
        port: TCP port; 0 lets the system choose.
        options: keywords of `Engine`: EngineConfig's fields, and ``progress``.
        api_key: one key or several separated by commas; None reads HALFBYTE_API_KEY.
        priority_key: the same for keys whose requests may have a priority; None reads
            HALFBYTE_PRIORITY_KEY.
        served_name: model name that requests use besides the engine's own.
        queue: bounds of what waits; None takes the usual ones.
        max_connections: most open connections; None is as many as files allow, up to 1024.
        allowed_hosts: names that the Host header may have besides the server's own.
        cors_origins: web origins whose pages may read the answers.
        drain_s: seconds that running requests have to end after the first signal.

    Raises:
        HalfbyteError: the model cannot be loaded, the address cannot be taken, or the engine
            died while serving.
    """
    keys = given_keys(api_key, KEY_VARIABLE)
    priority_keys = given_keys(priority_key, PRIORITY_KEY_VARIABLE)
    keyed = bool(keys or priority_keys)
    origins = check_origins(cors_origins)
    connections = Connections(connection_limits(max_connections, raise_file_limit()))
    listener = listen(host, port)
    try:
        loopback = is_loopback(listener)
        hosts = host_names(host, allowed_hosts, guarded=loopback and not keyed)
        log_to_stderr()
        with answering(listener):
            engine = Engine(model, **options)
            engine.reserve()
        # What lives until the end is not searched for garbage again: a full collection over it
        # would stop all streams for a tenth of a second.
        gc.collect()
        gc.freeze()
        names = model_names(model, engine.name, served_name)
        service = OpenAIService(
            AsyncEngine(engine),
            ServiceConfig(names=names, queue=queue or QueueLimits()),
            model_facts(engine),
        )
        keyring = Keyring(keys, priority_keys)
        app = create_app(service, keyring=keyring, hosts=hosts, origins=origins)
        url = url_of(host, listener.getsockname()[1])
        for line in describe(engine, keyed=keyed):
            _say(line)
        if not loopback and not keyed:
            _say(f"WARNING: {host} is open to the network and no API key is set")
        server = DrainingServer(
            uvicorn_config(app, connections),
            connections,
            drain=lambda: service.close(drain_s),
            cut_short=service.cut_short,
            health=service.health,
            on_ready=lambda: _say(f"ready: {url}/v1 serves {', '.join(names)} (ctrl-C stops)"),
        )
        server.run_on(listener)
    finally:
        listener.close()


def given_keys(given: str | None, variable: str) -> tuple[str, ...]:
    """Keys from an option or, when that is None, from an environment variable; split at commas.

    Raises:
        ConfigError: something was given, but no key is in it.
    """
    text = os.environ.get(variable) if given is None else given
    if text is None:
        return ()
    keys = tuple(key.strip() for key in text.split(",") if key.strip())
    if not keys:
        raise ConfigError("the API key is empty", hint=f"unset {variable} to serve without")
    return keys


def model_facts(engine: Engine) -> ServedModel:
    """What the engine's loader found out about the model's files."""
    report = engine.report
    most = max(report.formats, key=lambda label: report.formats[label][1], default="")
    size = sum(report.files.values())
    return ServedModel(report.kind, engine.model_config.architecture, most, size)


def describe(engine: Engine, *, keyed: bool) -> list[str]:
    """The start-up table: what is served, with which limits, and what loading warns of."""
    config = engine.config
    stats = engine.stats()
    seconds = sum(engine.startup.values())
    rows: Mapping[str, str] = {
        "model": engine.name,
        "weights": f"{engine.weight_bytes / 1e6:.3g} MB, backend {engine.backend}",
        "context": f"{engine.max_context} tokens",
        "batch": f"{config.max_batch} requests, {config.max_batch_tokens} tokens a step",
        "KV cache": f"{stats.kv_blocks_total} blocks of {config.block_size} tokens",
        "API key": "required" if keyed else "none",
        "loaded in": f"{seconds:.2f} s",
    }
    lines = [*rows.items(), *(("WARNING", text) for text in engine.report.warnings)]
    return [f"{name:>10}  {value}" for name, value in lines]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
