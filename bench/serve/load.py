"""Requests at their times: when each is sent, how many run at once, and what came of all."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from halfbyte.errors import ConfigError

from .client import StreamedAnswer, stream_answer
from .target import BodyForm, ServeTarget
from .workload import BenchPrompt

OnAnswers = Callable[[int, int, int], None]
"""Called with the numbers of requests that are done and that failed, and of tokens so far."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When requests come.

    Attributes:
        rate: requests per second; infinite sends all at once.
        burstiness: shape of the gamma distribution of the times between two of them: 1 is a
            Poisson process, less comes in bursts, infinite is a constant rate.
        max_concurrency: most requests that run at once; None for no bound.
        seed: of the drawn times.

    Raises:
        ConfigError: a value is outside its range.
    """

    rate: float = math.inf
    burstiness: float = 1.0
    max_concurrency: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for flag, value in (("--request-rate", self.rate), ("--burstiness", self.burstiness)):
            # A number that is none compares as False.
            if not value > 0:
                raise ConfigError(f"{flag} is {value:g}; expected more than 0, or inf")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ConfigError(f"--max-concurrency is {self.max_concurrency}; expected 1 or more")

    def times_s(self, count: int) -> list[float]:
        """Seconds from the start of each of ``count`` requests.

        As in ``vllm bench serve``, drawn times are scaled so that the last one is exactly
        ``count / rate``: two seeds then differ in the order of bursts and not in the rate.
        """
        if math.isinf(self.rate):
            return [0.0] * count
        if math.isinf(self.burstiness):
            return [(number + 1) / self.rate for number in range(count)]
        draw = np.random.default_rng(self.seed)
        gaps = draw.gamma(self.burstiness, 1 / (self.rate * self.burstiness), count)
        ends = np.cumsum(gaps)
        return (ends * (count / self.rate / ends[-1])).tolist() if ends[-1] > 0 else [0.0] * count


@dataclass(frozen=True, slots=True)
class RequestSample:
    """What one request took.

    Attributes:
        start_s: seconds from the start of the run until it was sent.
        queue_s: seconds that it waited for one of ``max_concurrency`` places before.
        prompt_tokens: as the server counts them; as asked for where it failed.
        output_tokens: as the server counts them; 0 where it failed.
        ttft_s: seconds from its sending to the first event with text.
        itl_s: seconds between two events with text.
        latency_s: seconds from its sending to the last event with text.
        text: of the answer.
        error: why it failed; "" when it did not.
    """

    start_s: float
    queue_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    itl_s: list[float]
    latency_s: float
    text: str
    error: str

    @classmethod
    def of(
        cls, answer: StreamedAnswer, prompt: BenchPrompt, begun_s: float, queue_s: float
    ) -> RequestSample:
        """The sample of an answer in a run that began at ``begun_s`` of the same clock."""
        times = answer.times_s
        return cls(
            start_s=answer.sent_s - begun_s,
            queue_s=queue_s,
            prompt_tokens=answer.usage.get("prompt_tokens", prompt.input_len),
            output_tokens=0 if answer.error else answer.usage["completion_tokens"],
            ttft_s=times[0] - answer.sent_s if times else 0.0,
            itl_s=[b - a for a, b in itertools.pairwise(times)],
            latency_s=times[-1] - answer.sent_s if times else 0.0,
            text=answer.text,
            error=answer.error,
        )


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A run of requests.

    Attributes:
        samples: of those that were answered or failed, in the order in which they were to be sent.
        duration_s: from the start to the last byte.
        interrupted: ctrl-C came before all were done; the others are in no sample.
    """

    samples: list[RequestSample]
    duration_s: float
    interrupted: bool = False


async def send_prompts(
    target: ServeTarget,
    form: BodyForm,
    prompts: Sequence[BenchPrompt],
    arrivals: Arrivals,
    silence_s: float,
    progress: OnAnswers = lambda done, failed, tokens: None,
) -> LoadResult:
    """Send every prompt at its time and read all answers; ctrl-C ends it early.

    Args:
        target: the server.
        form: what every body says.
        prompts: requests, in order.
        arrivals: when each comes.
        silence_s: seconds without a byte after which a request has failed.
        progress: told of each answer.
    """
    bodies = [form.body(prompt.text, prompt.output_len) for prompt in prompts]
    times = arrivals.times_s(len(prompts))
    places = asyncio.Semaphore(arrivals.max_concurrency or len(prompts))
    done: dict[int, RequestSample] = {}
    failed = tokens = 0
    begun = time.perf_counter()

    async def one(number: int) -> None:
        nonlocal failed, tokens
        await asyncio.sleep(max(0.0, begun + times[number] - time.perf_counter()))
        arrived = time.perf_counter()
        async with places:
            queued = time.perf_counter() - arrived
            answer = await stream_answer(target, form.endpoint, bodies[number], silence_s)
        done[number] = sample = RequestSample.of(answer, prompts[number], begun, queued)
        failed += bool(sample.error)
        tokens += sample.output_tokens
        progress(len(done), failed, tokens)

    with _interrupts() as interrupted:
        tasks = [asyncio.create_task(one(number)) for number in range(len(prompts))]
        every = asyncio.gather(*tasks)
        stop = asyncio.create_task(interrupted.wait())
        await asyncio.wait([every, stop], return_when=asyncio.FIRST_COMPLETED)
        duration = time.perf_counter() - begun
        if every.done():
            every.result()  # nothing, or an error of ours
        stop.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(every, stop, return_exceptions=True)
    samples = [done[number] for number in sorted(done)]
    return LoadResult(samples, duration, interrupted=len(samples) < len(prompts))


@contextlib.contextmanager
def _interrupts() -> Iterator[asyncio.Event]:
    """An event that ctrl-C sets while the block runs, in place of what it does elsewhere."""
    event, loop = asyncio.Event(), asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)
    try:
        loop.add_signal_handler(signal.SIGINT, event.set)
    except (RuntimeError, ValueError):
        # Only the main thread may, and not on every system.
        yield event
        return
    try:
        yield event
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)
