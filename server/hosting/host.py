"""The models of a server: which are loaded, who uses them, and which has to go for another."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

from halfbyte.errors import HalfbyteError

from ...engine.serve.client import Health
from ..errors import ApiError, engine_down, no_such_model
from ..kept import KeptResponses
from ..metric_families import Exposition
from ..metrics import HttpMetrics
from ..service import OpenAIService
from .metrics import LoadMetrics
from .offer import Offer, offer_of

logger = logging.getLogger("halfbyte.server")

Loader = Callable[[Offer], Awaitable[OpenAIService]]
"""Makes the service of a model, not started yet, beside the event loop; raises HalfbyteError."""


class ModelState(StrEnum):
    """Where a model is; the words are llama.cpp's."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"


class HostedModel:
    """A model of a server, now.

    Args:
        offer: what is known of it.
        exposition: metrics of the server.

    Attributes:
        offer: what is known of it.
        service: serves it while it is loaded.
        state: where it is.
        created: Unix time since which it is offered, seconds.
        users: requests that have it.
        wanted: requests that wait for it.
        leaving: it will be unloaded when its last user has gone; nobody gets it any more.
        last_used: number of the last request that began or ended to use it.
        arrival: whoever waits for it waits for this.
        idle: set while it has no user.
        metrics: of its loading.
    """

    def __init__(self, offer: Offer, exposition: Exposition) -> None:
        self.offer = offer
        self.service: OpenAIService | None = None
        self.state = ModelState.UNLOADED
        self.created = int(time.time())
        self.users = 0
        self.wanted = 0
        self.leaving = False
        self.last_used = 0
        self.arrival: asyncio.Task[None] | None = None
        self.idle = asyncio.Event()
        self.idle.set()
        self.metrics = LoadMetrics(
            exposition, offer.names[0], lambda: self.state is ModelState.LOADED
        )

    @property
    def free(self) -> bool:
        """Nobody uses it or waits for it."""
        return not self.users and not self.wanted


class Lease:
    """The use of a model by one request; must be released.

    Attributes:
        service: of the model, which stays loaded until then.
    """

    def __init__(self, service: OpenAIService, release: Callable[[], None]) -> None:
        self.service = service
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Give the model back. May be called twice."""
        if self._release is not None:
            self._release()
        self._release = None


@dataclass(frozen=True, slots=True)
class HostLimits:
    """Bounds of what a server of several models holds.

    Attributes:
        nbytes: that loaded models may take together; 0 is no bound.
        waiting: most requests that wait for a model.
        wait_s: longest time that one waits for another model's answers to end, seconds; 0 is no
            bound.
        drain_s: that answers have to end when their model is unloaded by a client, seconds.
    """

    nbytes: int = 0
    waiting: int = 256
    wait_s: float = 300.0
    drain_s: float = 30.0


class ModelHost:
    """Serves several models; all calls come from the event loop's thread.

    One that is not loaded is loaded when a request names it. Where the bound of memory leaves no
    room, those go that were not used for the longest, idle ones first; one that is in use is given
    to nobody any more and goes when its last answer has ended.

    Args:
        offers: what requests may name, the first is what they get that name nothing.
        load: makes the service of a model, or None where there is nothing to load.
        limits: bounds.
        exposition: metrics of the server.
        kept: responses that later ones may go on from.

    Attributes:
        models: all of them, loaded or not.
        exposition: metrics of the server.
        http_metrics: those that no model has.
        kept: responses that later ones may go on from.
    """

    def __init__(
        self,
        offers: Sequence[Offer],
        load: Loader | None = None,
        limits: HostLimits | None = None,
        *,
        exposition: Exposition,
        kept: KeptResponses,
    ) -> None:
        self.models = tuple(HostedModel(offer, exposition) for offer in offers)
        self.exposition = exposition
        self.kept = kept
        self._names = {name: model for model in self.models for name in model.offer.names}
        self._load = load
        self._limits = limits or HostLimits()
        several = len(self.models) > 1
        self.http_metrics = HttpMetrics(exposition, "" if several else offers[0].names[0])
        self._changing = asyncio.Lock()
        self._uses = itertools.count(1)
        self._closed = False

    @staticmethod
    def of(service: OpenAIService) -> ModelHost:
        """The host of one model that is there and stays."""
        host = ModelHost(
            [offer_of(service)], exposition=service.metrics.exposition, kept=service.kept
        )
        host.put(service)
        return host

    def put(self, service: OpenAIService) -> None:
        """Give the host a model's service that was made before `start`."""
        model = self._names[service.names[0]]
        model.service, model.state = service, ModelState.LOADED
        model.metrics.loaded()

    async def start(self) -> None:
        """Start the services that were put here on the running event loop."""
        for service in self._services():
            await service.start()

    async def close(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, give the live ones ``drain_s`` seconds, end the rest."""
        self._closed = True
        arrivals = [model.arrival for model in self.models if model.arrival is not None]
        for arrival in arrivals:
            arrival.cancel()
        await asyncio.gather(*arrivals, return_exceptions=True)
        await asyncio.gather(*(service.close(drain_s) for service in self._services()))

    def cut_short(self) -> None:
        """End the requests that `close` still waits for; their streams get an error event."""
        for service in self._services():
            service.cut_short()

    def health(self) -> Health:
        """State of the worst of the engines that are there."""
        found = [service.health() for service in self._services()]
        if not found:
            return Health(not self._closed, not self._closed)
        worst = min(found, key=lambda health: (not health.dead, health.alive))
        accepting = worst.alive and not self._closed and any(one.accepting for one in found)
        return Health(
            worst.alive, accepting, worst.dead, max(one.step_age_s for one in found), worst.error
        )

    def find(self, name: str | None) -> HostedModel:
        """The model of a name, with ``:latest`` behind it or without; the first of none.

        Raises:
            ApiError: 404, there is no such model.
        """
        if name is None:
            return self.models[0]
        found = self._names.get(name) or self._names.get(name.removesuffix(":latest"))
        if found is None:
            raise no_such_model(name, self._names)
        return found

    async def take(self, name: str | None) -> Lease:
        """The use of a model, which is loaded if it is not.

        Raises:
            ApiError: 404, there is no such model; 429, too many wait for one; 503, it cannot be
                loaded, or there was no room for it in time.
        """
        # The service of an only model has its own words for a name that is not its own.
        model = self.models[0] if len(self.models) == 1 else self.find(name)
        if model.service is None or model.leaving:
            await self._wait_for(model)
        else:
            self._use(model)
        service = model.service
        assert service is not None
        return Lease(service, lambda: self._leave(model))

    @asynccontextmanager
    async def lent(self, name: str | None) -> AsyncIterator[OpenAIService]:
        """The service of a model for the length of a block; raises what `take` does."""
        lease = await self.take(name)
        try:
            yield lease.service
        finally:
            lease.release()

    async def unload(self, name: str) -> None:
        """Unload a model once its answers have ended; they have the drain time for that.

        Raises:
            ApiError: 404, there is no such model; 400, this server keeps its model.
        """
        model = self.find(name)
        if self._load is None:
            raise ApiError(
                400,
                "This server has one model, which stays loaded; started with --model NAME=PATH it "
                "has several.",
                code="model_stays",
            )
        async with self._changing:
            if model.service is None:
                return
            model.leaving = True
            try:
                await asyncio.wait_for(model.idle.wait(), self._limits.drain_s)
            except TimeoutError:
                model.service.cut_short()
                await model.idle.wait()
            except BaseException:
                model.leaving = False
                raise
            await self._remove(model, "as a client asked")

    # Who uses what.

    def _use(self, model: HostedModel, count: int = 1) -> None:
        model.users += count
        model.last_used = next(self._uses)
        model.idle.clear()

    def _leave(self, model: HostedModel) -> None:
        model.users -= 1
        model.last_used = next(self._uses)
        if not model.users:
            model.idle.set()

    async def _wait_for(self, model: HostedModel) -> None:
        """Wait until a model is there, and use it. Raises ApiError."""
        if self._closed or self._load is None:
            raise engine_down()
        if sum(each.wanted for each in self.models) >= self._limits.waiting:
            raise ApiError(
                429,
                f"{self._limits.waiting} requests wait for models to be loaded; try again later.",
                retry_after=5,
            )
        if model.arrival is None:
            model.arrival = asyncio.ensure_future(self._bring(model))
            model.arrival.add_done_callback(_hear)
        arrival = model.arrival
        model.wanted += 1
        try:
            async with asyncio.timeout(self._limits.wait_s or None):
                await asyncio.shield(arrival)
        except BaseException as error:
            if _arrived(arrival):
                self._leave(model)
            else:
                model.wanted -= 1
                # Nobody wants it any more: those that it waits for may stay.
                if not model.wanted and model.state is ModelState.UNLOADED:
                    arrival.cancel()
                    model.arrival = None
            if isinstance(error, TimeoutError):
                raise ApiError(
                    503,
                    f"The model {model.offer.names[0]!r} waited {self._limits.wait_s:g} s for "
                    "others to leave their memory.",
                    code="model_loading",
                    retry_after=10,
                ) from None
            if isinstance(error, asyncio.CancelledError) and self._closed:
                raise engine_down() from None
            raise

    # What is loaded.

    def _services(self) -> list[OpenAIService]:
        return [model.service for model in self.models if model.service is not None]

    async def _bring(self, model: HostedModel) -> None:
        """Load a model when its turn comes, and let those use it who wait. Raises ApiError."""
        try:
            async with self._changing:
                if model.service is None and model.wanted:
                    await self._make_room(model)
                    await self._fill(model)
                if model.wanted:
                    self._use(model, model.wanted)
                    model.wanted = 0
        finally:
            if model.arrival is asyncio.current_task():
                model.arrival = None

    async def _make_room(self, model: HostedModel) -> None:
        """Unload others until a model fits."""
        while others := [other for other in self.models if other.service is not None]:
            held = sum(other.offer.nbytes for other in others)
            if not 0 < self._limits.nbytes < held + model.offer.nbytes:
                return
            victim = min(others, key=lambda other: (not other.free, other.last_used))
            victim.leaving = True
            try:
                await victim.idle.wait()
            except BaseException:
                victim.leaving = False
                raise
            await self._remove(victim, f"for {model.offer.names[0]}")

    async def _fill(self, model: HostedModel) -> None:
        """Load a model. Raises ApiError."""
        assert self._load is not None
        name = model.offer.names[0]
        began = time.perf_counter()
        model.state = ModelState.LOADING
        loading = asyncio.ensure_future(self._load(model.offer))
        try:
            # A thread cannot be stopped: whoever closes the host waits for it.
            await asyncio.wait({loading})
            service = loading.result()
            await service.start()
        except asyncio.CancelledError:
            model.state = ModelState.UNLOADED
            await asyncio.wait({loading})
            if loading.exception() is None:
                await loading.result().close()
            raise
        except Exception as error:
            model.state = ModelState.UNLOADED
            logger.error("the model %s cannot be loaded", name, exc_info=error)
            told = str(error) if isinstance(error, HalfbyteError) else "the log has the details"
            raise ApiError(
                503,
                f"The model {name!r} cannot be loaded: {told}",
                code="model_not_loaded",
                retry_after=10,
            ) from None
        model.service, model.state = service, ModelState.LOADED
        model.metrics.loaded()
        logger.info("loaded %s in %.2f s", name, time.perf_counter() - began)

    async def _remove(self, model: HostedModel, reason: str) -> None:
        """Unload a model that nobody uses."""
        service, model.service = model.service, None
        assert service is not None
        try:
            await service.close()
        finally:
            service.metrics.retire()
            model.state, model.leaving = ModelState.UNLOADED, False
            model.metrics.unloaded()
            logger.info("unloaded %s %s", model.offer.names[0], reason)


def _arrived(arrival: asyncio.Task[None]) -> bool:
    """Whether a model has come, and whoever waited uses it already."""
    return arrival.done() and not arrival.cancelled() and arrival.exception() is None


def _hear(arrival: asyncio.Task[None]) -> None:
    """Look at what became of an arrival that nobody waited for to the end."""
    if not arrival.cancelled():
        arrival.exception()
