"""What a server tells while it starts: to people as the command line shows it, or to the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..engine.advise.start_plan import StartPlan
from .log import with_fields

logger = logging.getLogger("halfbyte.server")


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model that is about to be served.

    Attributes:
        plan: its engine, by arithmetic.
        names: that requests may use, the preferred one first.
        source: name, path or repository id of its files.
        at_start: loaded before the first request; others when they are asked for.
    """

    plan: StartPlan
    names: Sequence[str]
    source: str
    at_start: bool


@dataclass(frozen=True, slots=True)
class StartFacts:
    """What is about to be served.

    Attributes:
        models: at least one.
        room: bytes that all of them may take together.
        url: under which this machine reaches the server.
        keyed: whether a request needs a key.
        exposed: the network can connect, and no key is needed.
        page: there is a chat page at ``/``.
    """

    models: Sequence[PlannedModel]
    room: int
    url: str
    keyed: bool
    exposed: bool
    page: bool

    @property
    def names(self) -> list[str]:
        """All names that requests may use."""
        return [name for model in self.models for name in model.names]

    def warnings(self) -> list[str]:
        """What may go wrong later."""
        found = []
        if self.exposed:
            found.append("the server is open to the network and no API key is set")
        if len(self.models) > 1:
            return found  # one that does not fit was refused, and they make room for each other
        plan = self.models[0].plan
        if plan.least > plan.memory.free_bytes:
            found.append(
                f"weights and workspace need {plan.least >> 20} MiB, but "
                f"{plan.memory.free_bytes >> 20} MiB are free"
            )
        elif plan.most > plan.memory.free_bytes:
            found.append(
                f"with a full KV cache {plan.most >> 20} MiB are needed, but "
                f"{plan.memory.free_bytes >> 20} MiB are free; --kv-tokens makes it smaller"
            )
        return found


class StartReport(Protocol):
    """Who hears of a start."""

    def planned(self, facts: StartFacts) -> None:
        """The address is taken; the model is about to be loaded."""
        ...

    def progress(self, done: int, total: int) -> None:
        """So many layers of all are loaded."""
        ...

    def loaded(self, seconds: Mapping[str, float], warnings: Sequence[str]) -> None:
        """The model is there: seconds of each phase, and what loading found odd."""
        ...

    def ready(self, facts: StartFacts) -> None:
        """Connections are accepted."""
        ...


class LoggedStart:
    """A start in the log, with all facts as fields.

    Args:
        settings: what differs from the defaults, as plain JSON types.
    """

    def __init__(self, settings: Sequence[Mapping[str, Any]] = ()) -> None:
        self._settings = settings

    def planned(self, facts: StartFacts) -> None:
        """A line with the plan of each model, and one for each warning."""
        for model in facts.models:
            logger.info("starting", extra=self._fields(facts, model))
        for text in facts.warnings():
            logger.warning("%s", text)

    def _fields(self, facts: StartFacts, model: PlannedModel) -> dict[str, Any]:
        plan = model.plan
        return with_fields(
            model=plan.name,
            names=list(model.names),
            at_start=model.at_start,
            architecture=plan.architecture,
            file_format=plan.file_format,
            formats=plan.formats,
            backend=plan.backend,
            kernels=plan.detail,
            weights_bytes=plan.weights,
            kv_bytes=plan.memory.kv_bytes,
            kv_dtype=plan.memory.kv_dtype,
            workspace_bytes=plan.workspace,
            free_bytes=plan.memory.free_bytes,
            context=plan.memory.max_context,
            batch=plan.batch,
            step_tokens=plan.step_tokens,
            url=facts.url,
            api_key=facts.keyed,
            settings=list(self._settings),
        )

    def progress(self, done: int, total: int) -> None:
        """Nothing: a line for each layer would tell nobody anything."""

    def loaded(self, seconds: Mapping[str, float], warnings: Sequence[str]) -> None:
        """A line with the phases, and one for each warning."""
        phases = {name: round(value, 4) for name, value in seconds.items()}
        logger.info("loaded", extra=with_fields(seconds=phases))
        for text in warnings:
            logger.warning("%s", text)

    def ready(self, facts: StartFacts) -> None:
        """A line with the URL."""
        logger.info("ready", extra=with_fields(url=facts.url, names=facts.names))
