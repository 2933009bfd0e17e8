"""Halfbyte as one of the engines, in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from halfbyte.errors import ConfigError

from ...engine.config import make_config
from ...engine.engine import Engine
from ..engine import EngineCase, TokenSource, sample, warm_up
from .peer import Contestant, Setting
from .worker import Worker, answer

OUR_LABEL = "halfbyte"


class Halfbyte:
    """The engine, with default options but for ``options``; a ``Peer``.

    Its decode is the whole step: schedule, forward, sample, commit.
    """

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        self._options = options or {}
        shown = [f"{key}={json.dumps(value)}" for key, value in self._options.items()]
        self.label = " ".join([OUR_LABEL, *shown])

    def lacks(self, model: Path, case: EngineCase) -> str:
        """See :class:`~.peer.Peer`."""
        del model, case
        return ""

    def open(self, model: Path, setting: Setting) -> Contestant:
        """See :class:`~.peer.Peer`."""
        return Worker(self.label, serve, str(model), setting, self._options)


def parse_options(text: str) -> dict[str, Any]:
    """Options of an engine from ``KEY=VALUE,...``, values in JSON or plain words.

    Raises ConfigError for an option that there is not, or a value out of its range.
    """
    options: dict[str, Any] = {}
    for part in text.split(","):
        key, sign, value = part.partition("=")
        if not sign:
            raise ConfigError(f"--also holds {part!r:.60}; expected KEY=VALUE, such as exact=true")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    make_config(options)
    return options


def serve(pipe: Connection, model: str, setting: Setting, options: dict[str, Any]) -> None:
    """The process: answer tests of a model."""

    def start() -> tuple[dict[str, Any], Callable[[EngineCase], float]]:
        # The last sequence of a batch starts some steps after the first.
        longest = max(setting.pp, setting.tg + setting.batch) + 8
        chosen = {
            "max_context": longest,
            "threads": setting.threads,
            "max_batch": setting.batch,
            "prefix_cache": False,
        }
        engine = Engine(model, **(chosen | options))
        ids = TokenSource(engine, seed=0)
        for case in setting.cases:
            warm_up(engine, case, ids)
        facts = {
            "backend": engine.backend,
            "packed_bytes_read_by_token": engine.weight_bytes,
            "startup_s": engine.startup,
            "options": asdict(engine.config),
        }
        return facts, lambda case: sample(engine, case, ids)

    answer(pipe, start)
