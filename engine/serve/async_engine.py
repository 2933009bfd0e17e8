"""AsyncEngine: a single-threaded engine in a separate thread, behind `EngineClient`.

One turn of the engine thread: run the queued commands (submit, cancel, stop), step the engine
once, hand the deltas to the event loop in one call. With nothing to do it blocks on the queue.

Threads and who owns what: the engine and ``_running`` belong to the engine thread; ``_live`` and
the streams belong to the event loop; ``_stats``, ``_dead``, ``_step_began`` are written by the
engine thread only and read by both (single references, so no lock).

The engine itself outlives requests that fail and steps that fail now and then, and counts them.
What leaves its `step` all the same is the end: the engine is dead for good, and every live request
is ended with an error delta.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol

from halfbyte.errors import EngineDeadError

from ..params import SamplingParams
from ..request import Completion, Delta, FinishReason, PromptReader, Usage
from ..run.stats import EngineStats
from .client import EngineFacts, Health, StreamObserver
from .stream import RequestStream

logger = logging.getLogger("halfbyte.engine")

# How long a close waits for cancelled requests to be freed and for the thread to end, seconds.
_CLOSE_GRACE_S = 10.0

_Event = tuple[RequestStream, "Delta | Exception | None"]


class StepEngine(EngineFacts, Protocol):
    """The face of `halfbyte.Engine` that this module drives; called from one thread."""

    def submit(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        reader: PromptReader | None = None,
    ) -> str:
        """Queue a request; raises RequestError."""
        ...

    def prepare(self, params: SamplingParams) -> None:
        """Compile what parameters need; may take long; called from any thread."""
        ...

    def cancel(self, request_id: str) -> None:
        """End a request at the next step; unknown ids are ignored."""
        ...

    def begun(self, request_id: str) -> bool:
        """Whether a request has left the queue; True for an unknown one."""
        ...

    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        ...

    def step(self) -> list[Delta]:
        """Run one scheduler step; what it raises is the end of the engine."""
        ...

    def stats(self) -> EngineStats:
        """Counters now."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class AsyncEngine:
    """Runs an engine in one thread and gives each request a stream on the event loop.

    Args:
        engine: built already; after `start` only the engine thread may touch it.
        stall_s: seconds after which a step in progress makes `health` say not alive.
    """

    def __init__(self, engine: StepEngine, *, stall_s: float = 300.0) -> None:
        self.name = engine.name
        self.config = engine.config
        self.max_context = engine.max_context
        self.tokenizer = engine.tokenizer
        self._engine = engine
        self._stall_s = stall_s
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._process = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stats: EngineStats = engine.stats()
        self._dead: str | None = None
        self._step_began: float | None = None
        # Engine thread.
        self._running: dict[str, RequestStream] = {}
        self._outbox: list[_Event] = []
        self._stop = False
        # Event loop.
        self._live: dict[str, RequestStream] = {}
        self._preparing: dict[str, RequestStream] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._observers: list[StreamObserver] = []
        self._serial = itertools.count()
        self._closer: asyncio.Task[None] | None = None

    @property
    def live(self) -> int:
        """Requests submitted and not yet ended, cancelled ones included until freed."""
        return len(self._live)

    async def start(self) -> None:
        """Start the engine thread; deltas go to the running event loop.

        Raises EngineDeadError the second time.
        """
        if self._thread is not None:
            raise EngineDeadError("the engine has been started already")
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._main, name="halfbyte-engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        reader: PromptReader | None = None,
    ) -> RequestStream:
        """Queue a request; see `EngineClient.submit`.

        Args:
            prompt: token ids, or text that the engine thread tokenizes between steps.
            params: sampling parameters.
            request_id: unique among the live requests; None makes one.
            priority: smaller runs earlier.
            cache_salt: separates prefix-cache entries of different tenants.
            reader: looks at what is computed of the prompt.

        Raises:
            EngineDeadError: the engine is dead, closed or not started.
        """
        if self._thread is None or self._closer is not None or self._dead is not None:
            raise EngineDeadError(self._dead or "the engine is not running")
        if self._process != os.getpid():
            raise EngineDeadError(
                "the process was forked after its engine was started: start it in the child"
            )
        name = request_id or f"request-{next(self._serial)}"
        while name in self._live:  # a client may have chosen the id that a number makes, too
            name = f"{request_id or 'request'}-{next(self._serial)}"
        length = 0 if isinstance(prompt, str) else len(prompt)
        stream = RequestStream(name, length, self.cancel)
        self._live[name] = stream
        self._idle.clear()
        submit = partial(self._submit_now, stream, prompt, params, priority, cache_salt, reader)
        if params.grammar is None:
            self._commands.put(submit)
        else:
            # Neither the event loop nor the engine waits for a grammar to be compiled.
            self._preparing[name] = stream
            work = asyncio.get_running_loop().run_in_executor(None, self._engine.prepare, params)
            work.add_done_callback(partial(self._prepared, stream, submit))
        return stream

    def _prepared(
        self, stream: RequestStream, submit: Callable[[], None], work: asyncio.Future[None]
    ) -> None:
        """A request's grammar is compiled, or is refused."""
        error = None if work.cancelled() else work.exception()
        if self._preparing.pop(stream.id, None) is None or stream.finished:
            return  # it was cancelled, or the engine died, and it was told so
        if error is None and not work.cancelled():
            self._commands.put(submit)
        else:
            wrapped = error if isinstance(error, Exception) else EngineDeadError(str(error))
            self._dispatch([(stream, wrapped)], time.perf_counter())

    def cancel(self, request_id: str) -> None:
        """Ask for the end of a request; ids that are not live are ignored."""
        if not self._cancel_preparing(request_id) and request_id in self._live:
            self._commands.put(partial(self._cancel_now, request_id))

    def cancel_waiting(self, request_id: str) -> None:
        """Ask for the end of a request unless the engine has begun with it."""
        if not self._cancel_preparing(request_id) and request_id in self._live:
            self._commands.put(partial(self._cancel_waiting_now, request_id))

    def _cancel_preparing(self, request_id: str) -> bool:
        """End a request whose grammar is being compiled; False when it is none."""
        stream = self._preparing.pop(request_id, None)
        if stream is None:
            return False
        usage = Usage(stream.prompt_tokens, 0)
        delta = Delta(stream.id, "", (), Completion("", [], FinishReason.CANCELLED, usage))
        self._dispatch([(stream, delta)], time.perf_counter())
        return True

    def observe(self, observer: StreamObserver) -> None:
        """Call ``observer`` on the event loop for each delta from now on."""
        self._observers.append(observer)

    def health(self) -> Health:
        """State of the engine; a step longer than ``stall_s`` counts as not alive."""
        began = self._step_began
        age = 0.0 if began is None else time.monotonic() - began
        error = self._dead
        if error is None and age > self._stall_s:
            error = f"a step has been running for {age:.0f} s"
        alive = error is None and self._thread is not None and self._thread.is_alive()
        return Health(alive, alive and self._closer is None, self._dead is not None, age, error)

    def stats(self) -> EngineStats:
        """Counters as of the last step."""
        return self._stats

    async def close(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, let the live ones run on, cancel the rest, stop the thread.

        Calling it again waits for the first call.

        Args:
            drain_s: seconds that live requests are given to end by themselves.
        """
        if self._closer is None:
            self._closer = asyncio.ensure_future(self._close(drain_s))
        await asyncio.shield(self._closer)

    async def _close(self, drain_s: float) -> None:
        if self._thread is None:
            self._engine.close()
            return
        await self._wait_idle(drain_s)
        for request_id in list(self._live):
            self.cancel(request_id)
        await self._wait_idle(_CLOSE_GRACE_S)
        self._commands.put(self._stop_now)
        await asyncio.to_thread(self._thread.join, _CLOSE_GRACE_S)
        if self._thread.is_alive():
            logger.error("the engine thread is stuck in a step; leaving it behind")
        self._fail_live("the engine is shut down")

    async def _wait_idle(self, timeout: float) -> None:
        if self._live and timeout > 0:
            try:
                await asyncio.wait_for(self._idle.wait(), timeout)
            except TimeoutError:
                logger.warning("%d requests still live after %.1f s", len(self._live), timeout)

    # Event loop: what the engine thread posts.

    def _dispatch(self, events: list[_Event], now: float) -> None:
        """Hand one step's events to their streams and observers."""
        for stream, item in events:
            if item is None:
                stream.accept()
            elif isinstance(item, Exception):
                self._forget(stream)
                stream.reject(item)
            else:
                if stream.finished:
                    continue
                if item.completion is not None:
                    self._forget(stream)
                for observer in self._observers:
                    observer(stream, item, now)
                stream.deliver(item, now)

    def _forget(self, stream: RequestStream) -> None:
        self._live.pop(stream.id, None)
        if not self._live:
            self._idle.set()

    def _fail_live(self, message: str) -> None:
        """End every request that the engine left behind."""
        now = time.perf_counter()
        self._dispatch([(s, _failure(s, message)) for s in list(self._live.values())], now)

    # Engine thread.

    def _main(self) -> None:
        try:
            while not self._stop:
                self._run_commands(wait=not self._engine.has_work())
                if not self._stop and self._engine.has_work():
                    self._step()
                self._stats = self._engine.stats()
                self._flush()
        except BaseException as error:  # whatever ends this thread must be seen by all
            self._die(error)
        finally:
            try:
                self._engine.close()
            except Exception:
                logger.exception("closing the engine failed")

    def _run_commands(self, *, wait: bool) -> None:
        """Run all queued commands; block for the first one when there is nothing else to do."""
        try:
            command = self._commands.get() if wait else self._commands.get_nowait()
            while True:
                command()
                command = self._commands.get_nowait()
        except Empty:
            self._flush()

    def _submit_now(
        self,
        stream: RequestStream,
        prompt: str | list[int],
        params: SamplingParams,
        priority: int,
        cache_salt: str,
        reader: PromptReader | None,
    ) -> None:
        try:
            self._engine.submit(
                prompt,
                params,
                request_id=stream.id,
                priority=priority,
                cache_salt=cache_salt,
                reader=reader,
            )
        except EngineDeadError as error:
            self._outbox.append((stream, error))
            raise
        except Exception as error:
            self._outbox.append((stream, error))
        else:
            self._running[stream.id] = stream
            self._outbox.append((stream, None))

    def _cancel_now(self, request_id: str) -> None:
        if request_id in self._running:
            self._engine.cancel(request_id)

    def _cancel_waiting_now(self, request_id: str) -> None:
        if request_id in self._running and not self._engine.begun(request_id):
            self._engine.cancel(request_id)

    def _stop_now(self) -> None:
        self._stop = True

    def _step(self) -> None:
        self._step_began = time.monotonic()
        try:
            deltas = self._engine.step()
        finally:
            self._step_began = None
        for delta in deltas:
            stream = self._running[delta.request_id]
            if delta.completion is not None:
                del self._running[delta.request_id]
            self._outbox.append((stream, delta))

    def _flush(self) -> None:
        """Post the outbox to the event loop in one call."""
        if not self._outbox:
            return
        events, self._outbox = self._outbox, []
        self._post(self._dispatch, events, time.perf_counter())

    def _post(self, function: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed: nobody is left to hear
            self._stop = True

    def _die(self, error: BaseException) -> None:
        self._dead = error.message if isinstance(error, EngineDeadError) else _describe(error)
        logger.critical("the engine is dead: %s", self._dead, exc_info=error)
        self._flush()
        self._post(self._fail_live, self._dead)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _failure(stream: RequestStream, message: str) -> Delta:
    """The last delta of a request that the engine cannot finish."""
    usage = Usage(stream.prompt_tokens, stream.tokens)
    completion = Completion("", [], FinishReason.ERROR, usage, error=message)
    return Delta(stream.id, "", completion=completion)
