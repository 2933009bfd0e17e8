"""``serve``: load a model, listen, run until told to stop, drain."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halfbyte.errors import ConfigError

from ..engine.async_engine import AsyncEngine
from ..engine.engine import Engine
from .app import create_app
from .listen import DrainingServer, bind, is_loopback, own_names, url_of, uvicorn_config
from .service import OpenAIService, ServiceConfig

KEY_VARIABLE = "HALFBYTE_API_KEY"


def serve(
    model: str,
    *,
    host: str,
    port: int,
    options: dict[str, Any],
    api_key: str | None = None,
    served_name: str | None = None,
    max_waiting: int = 256,
    drain_s: float = 30.0,
) -> None:
    """Serve a model over HTTP until SIGTERM or ctrl-C; returns after a clean end.

    The address is taken before the model is loaded, so that a port in use is known at once; it
    is listened on only after loading, so whoever connects gets answers.

    Args:
        model: name, path or repository id.
        host: address or name to listen on.
        port: TCP port; 0 lets the system choose.
        options: keywords of `Engine`: EngineConfig's fields, and ``progress``.
        api_key: one key or several separated by commas; None reads HALFBYTE_API_KEY.
        served_name: model name that requests use besides the engine's own.
        max_waiting: most requests waiting for a place in the batch; more get a 429.
        drain_s: seconds that running requests have to end after the first signal.

    Raises:
        HalfbyteError: the model cannot be loaded, the address cannot be taken, or the engine
            died while serving.
    """
    keys = api_keys(api_key)
    listener = bind(host, port)
    try:
        _log_to_stderr()
        engine = Engine(model, **options)
        names = _names(model, engine.name, served_name)
        service = OpenAIService(
            AsyncEngine(engine), ServiceConfig(names=names, max_waiting=max_waiting)
        )
        loopback = is_loopback(listener)
        hosts = own_names(host) if loopback and not keys else None
        app = create_app(service, api_keys=keys, hosts=hosts)
        url = url_of(host, listener.getsockname()[1])
        for line in describe(engine, keyed=bool(keys)):
            _say(line)
        if not loopback and not keys:
            _say(f"WARNING: {host} is open to the network and no API key is set")
        server = DrainingServer(
            uvicorn_config(app, drain_s),
            drain=lambda: service.close(drain_s),
            health=service.health,
            on_ready=lambda: _say(f"ready: {url}/v1 serves {', '.join(names)} (ctrl-C stops)"),
        )
        server.run_on(listener)
    finally:
        listener.close()


def api_keys(given: str | None) -> tuple[str, ...]:
    """Keys from the argument or, when that is None, from HALFBYTE_API_KEY; split at commas.

    Raises:
        ConfigError: something was given, but no key is in it.
    """
    text = os.environ.get(KEY_VARIABLE) if given is None else given
    if text is None:
        return ()
    keys = tuple(key.strip() for key in text.split(",") if key.strip())
    if not keys:
        raise ConfigError("the API key is empty", hint=f"unset {KEY_VARIABLE} to serve without")
    return keys


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


def _names(model: str, engine_name: str, served_name: str | None) -> tuple[str, ...]:
    """The model names that requests may use, the preferred one first."""
    asked = () if "://" in model or Path(model).exists() else (model,)
    chosen = (served_name,) if served_name else ()
    return tuple(dict.fromkeys((*chosen, *asked, engine_name)))


def _log_to_stderr() -> None:
    """Show our log lines, unless the program that calls us has set up logging."""
    root = logging.getLogger("halfbyte")
    if not root.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(handler)
        root.setLevel(logging.INFO)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
