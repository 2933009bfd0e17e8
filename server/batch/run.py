"""Running a batch: lines go to the service, a bounded number at a time, and answers to the record.

A run ends when every line has an answer, when it is told to stop, or when the engine or the disk
fails; whichever it was, the next run goes on from the record.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, BinaryIO

from halfbyte.errors import EngineDeadError

from ...engine.request import Delta
from ...engine.serve.client import EngineClient
from ...engine.serve.stream import RequestStream
from ..admission import QueueLimits
from ..endpoints import Endpoint
from ..errors import ApiError, as_api_error
from ..hosting.host import ModelHost
from ..job import Call
from ..responses import ResponseModel
from ..schema import RequestModel
from ..service import OpenAIService, ServiceConfig
from ..tenant import Tenant
from .lines import InputLine, custom_id_of, output_line, read_lines, read_request
from .order import LOOK_AHEAD_BYTES, LOOK_AHEAD_LINES, submission_order
from .record import BatchRecord
from .survey import Survey

logger = logging.getLogger("halfbyte.server")

MOST_AHEAD = 1 << 16
"""Answers before their turn, from which on no more lines are begun; each costs 200 bytes of memory.

Where one answer is that much longer than all others, these wait for it in the side file.
"""
# Of a refusal that may pass, such as the template process's end.
_ATTEMPTS = 3
# Of a refusal that says only that there is much to do.
_QUEUE_CODES = frozenset({"queue_timeout"})
# Whoever waits here is the batch itself, so nothing is too long a queue.
_NO_QUEUE_LIMITS = QueueLimits(requests=1 << 40, tokens=0, wait_s=0.0)


@dataclass(frozen=True, slots=True)
class BatchPace:
    """How much of a batch is in work.

    Attributes:
        live: lines with the service at a time.
        lines: most lines that are read at once, to be put in order.
        line_bytes: about as many bytes of them, at most.
    """

    live: int
    lines: int = LOOK_AHEAD_LINES
    line_bytes: int = LOOK_AHEAD_BYTES


class BatchRun:
    """Answers what the record has no answer to.

    Args:
        host: of the models that lines may name, started before `answer_all`.
        model: of `model_key`.
        file: the input, open for reading bytes.
        record: begun.
        survey: of the input.
        pace: how much of it is with the service at a time.
        tenant: whose requests they are.
        url: the only endpoint that lines may ask; None allows all of them.
        watch: called with this object when a line has its answer.

    Attributes:
        record: as given.
        total: lines of the input.
        first_failure: what the first failed line of this run was told, with its number; or "".
    """

    def __init__(
        self,
        host: ModelHost,
        model: str,
        file: BinaryIO,
        record: BatchRecord,
        survey: Survey,
        pace: BatchPace,
        *,
        tenant: Tenant | None = None,
        url: str | None = None,
        watch: Callable[[Any], None] = lambda _: None,
    ) -> None:
        self.record = record
        self.total = survey.total
        self.first_failure = ""
        self._host = host
        self._model = model
        self._survey = survey
        self._live = pace.live
        self._tenant = tenant or Tenant()
        self._url = url
        self._watch = watch
        start = read_lines(file, survey.start, record.done)
        left = (x for x in start if x.index < survey.total and not record.has(x.index))
        self._lines = submission_order(
            left,
            host.models[0].offer.block_size,
            most_lines=pace.lines,
            most_bytes=pace.line_bytes,
        )
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Begin no more lines and give up those that are running."""
        self._stop.set()

    async def answer_all(self) -> None:
        """Run to the end, or until `stop`.

        Raises:
            EngineDeadError: the engine died.
            OSError: an answer cannot be written.
        """
        live: set[asyncio.Task[tuple[InputLine, int, bytes]]] = set()
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            while not self._stop.is_set():
                self._fill(live)
                if not live:
                    break
                await asyncio.wait({*live, stopped}, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in live if task.done()]:
                    live.remove(task)
                    self._keep(*task.result())
        finally:
            stopped.cancel()
            for task in live:
                task.cancel()
            await asyncio.gather(*live, return_exceptions=True)
        if self.record.done == self.total:
            self.record.finish()

    def _fill(self, live: set[asyncio.Task[tuple[InputLine, int, bytes]]]) -> None:
        """Begin lines until enough are in flight. One always goes: it may be what others await."""
        while len(live) < self._live and (not live or self.record.ahead < MOST_AHEAD):
            line = next(self._lines, None)
            if line is None:
                return
            live.add(asyncio.ensure_future(self._answer(line)))

    def _keep(self, line: InputLine, status: int, body: bytes) -> None:
        answer = output_line(self._model, line, custom_id_of(line.data), status, body)
        self.record.add(line.index, answer, failed=status != 200)
        self._watch(self)

    async def _answer(self, line: InputLine) -> tuple[InputLine, int, bytes]:
        """A line with the status and the body that the server would answer with."""
        try:
            endpoint, asked = read_request(line, self._url)
            self._check_name(line)
            answer = await self._ask(endpoint, asked, line)
            return line, 200, answer.to_json()
        except Exception as error:
            health = self._host.health()
            if health.dead:
                raise EngineDeadError(health.error or "the engine died") from error
            told = as_api_error(error)
            if told.status == 500 and not isinstance(error, ApiError):
                logger.error("line %d failed", line.index + 1, exc_info=error)
            self.first_failure = self.first_failure or f"line {line.index + 1}: {told.message}"
            return line, told.status, told.json()

    def _check_name(self, line: InputLine) -> None:
        first = self._survey.doubled.first(line.index)
        if first is not None:
            raise ApiError(
                400,
                f"custom_id is {custom_id_of(line.data)!r:.200}, as that of line {first + 1}",
                param="custom_id",
                code="doubled_custom_id",
            )

    async def _ask(self, endpoint: Endpoint, asked: RequestModel, line: InputLine) -> ResponseModel:
        """The model's answer; refusals that may pass are asked again.

        A full queue is no fault of the line, so it asks again for as long as that takes.
        """
        attempt = 1
        while True:
            try:
                call = Call(line.key, tenant=self._tenant)
                async with self._host.lent(asked.wanted_model) as service:
                    answer = await endpoint.answer(service, asked, call)
                assert isinstance(answer, ResponseModel)  # streams are refused before
                return answer
            except Exception as error:
                told = as_api_error(error)
                if told.status not in (429, 503) or self._host.health().dead:
                    raise
                if told.status == 503 and told.code not in _QUEUE_CODES:
                    if attempt == _ATTEMPTS:
                        raise
                    attempt += 1
                await asyncio.sleep(told.retry_after or 1)


class StandaloneBatch(BatchRun):
    """A run that has an engine for itself.

    Args:
        client: the engine, not started.
        names: by which requests may call the model.
        model: of `model_key`.
        file: the input, open for reading bytes.
        record: begun.
        survey: of the input.
        watch: called with this object when something has changed, also for every token.

    Attributes:
        tokens: generated by this run.
    """

    def __init__(
        self,
        client: EngineClient,
        names: Sequence[str],
        model: str,
        file: BinaryIO,
        record: BatchRecord,
        survey: Survey,
        watch: Callable[[Any], None] = lambda _: None,
    ) -> None:
        # One thread for texts: their order is the one in which lines were submitted.
        config = ServiceConfig(names=tuple(names), queue=_NO_QUEUE_LIMITS, text_threads=1)
        # Two batches of the engine: none of its rows waits for a line.
        pace = BatchPace(live=2 * client.config.max_batch)
        host = ModelHost.of(OpenAIService(client, config))
        super().__init__(host, model, file, record, survey, pace, watch=watch)
        self.tokens = 0
        self._client = client

    def run(self) -> int | None:
        """Run to the end, or until ctrl-C or SIGTERM; the number of that signal or None.

        A second signal does what it would do without this.

        Raises:
            EngineDeadError: the engine died.
            OSError: an answer cannot be written.
        """
        with _caught() as caught:

            async def until_caught() -> None:
                caught.tell(asyncio.get_running_loop(), self.stop)
                await self.answer_all()

            asyncio.run(until_caught())
        return caught.number

    async def answer_all(self) -> None:
        """As a `BatchRun` does; starts the engine, and closes it."""
        await self._host.start()
        self._client.observe(self._count)
        try:
            await super().answer_all()
        finally:
            await self._host.close()

    def _count(self, stream: RequestStream, delta: Delta, now: float) -> None:
        """See what the engine has made (a `StreamObserver`)."""
        self.tokens += len(delta.token_ids)
        self._watch(self)


class CaughtSignal:
    """The first of ctrl-C and SIGTERM, told to an event loop instead of breaking into it.

    Attributes:
        number: of the signal; None before it came.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._tell: Callable[[], object] = lambda: None

    def tell(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        """Call ``call`` on the loop when the signal comes, or now if it has come."""
        self._tell = partial(loop.call_soon_threadsafe, call)
        if self.number is not None:
            self._tell()

    def take(self, number: int) -> None:
        """The signal is here."""
        self.number = number
        self._tell()


@contextmanager
def _caught() -> Iterator[CaughtSignal]:
    """Catch one signal in the block. Only the main thread gets signals: elsewhere none comes."""
    caught = CaughtSignal()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        handler = before[signal.Signals(number)]
        if caught.number is None:
            caught.take(number)
        elif callable(handler):
            handler(number, frame)

    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, handle)
    except ValueError:  # not the main thread
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
