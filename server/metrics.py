"""Prometheus metrics with the names and labels that vLLM's dashboards know, under a prefix.

Token counters are fed by the very deltas and usage records that clients get, so that metrics and
usage agree. Each server has a registry of its own: nothing is global, two servers do not clash.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

from prometheus_client import Counter
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ..engine.params import SamplingParams
from ..engine.request import Completion, Delta, FinishReason
from ..engine.run.stats import EngineStats
from ..engine.serve.stream import RequestStream
from .metric_families import Exposition, MetricFamilies

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Seconds. Finer than vLLM's below 10 ms, because small models decode a token in a few ms.
_TOKEN_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15),
    *(0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0),
)
_FIRST_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_REQUEST_BUCKETS = (
    *(0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0),
    *(50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_CHOICE_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0)
_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "abort",
    FinishReason.ERROR: "error",
}


class Refusal(StrEnum):
    """Why a request was not admitted."""

    QUEUE_FULL = "queue_full"
    QUEUE_TOKENS_FULL = "queue_tokens_full"
    BODIES_FULL = "bodies_full"
    ANSWERS_FULL = "answers_full"


class HttpMetrics:
    """What a server counts of requests whose model it does not know, or does not care for.

    Args:
        exposition: the families of the server.
        model_name: the ``model_name`` label of what vLLM gives one: the only model's, or empty.
    """

    def __init__(self, exposition: Exposition, model_name: str = "") -> None:
        families = MetricFamilies(exposition, model_name)
        self._rejections = _rejections(families)
        self._disconnects = families.counter(
            "client_disconnects", "Requests whose client left before the end"
        )
        self._http: Counter = exposition.family(
            Counter, "http_requests", "HTTP responses by route and status", ["path", "status"]
        )

    def response(self, path: str, status: int) -> None:
        """Count a response; ``path`` must be a route, never what the client typed."""
        self._http.labels(path, str(status)).inc()

    def disconnect(self) -> None:
        """Count a client that left early."""
        self._disconnects.inc()

    def rejection(self, reason: Refusal) -> None:
        """Count a request that was not admitted."""
        self._rejections(reason).inc()


class Metrics:
    """All metrics of one model.

    Args:
        model_name: value of the ``model_name`` label.
        stats: reads the engine's counters; called at each scrape.
        exposition: the families of the server; None makes some.
        longest: tokens of the context, about where the buckets of token counts end.
        infos: name -> labels of what never changes.

    Attributes:
        exposition: where the series are.
    """

    def __init__(
        self,
        model_name: str,
        stats: Callable[[], EngineStats],
        exposition: Exposition | None = None,
        *,
        longest: int = 8192,
        infos: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self._stats = stats
        self.exposition = exposition or Exposition()
        families = MetricFamilies(self.exposition, model_name)

        def now() -> EngineStats:
            return self._stats()

        families.gauge("num_requests_running", "Requests in the batch", lambda: now().running)
        families.gauge("num_requests_waiting", "Requests in the queue", lambda: now().waiting)
        families.gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", self._kv_usage)
        families.step_sizes("iteration_tokens_total", "Tokens computed in a step", now)
        families.tally("num_preemptions", "Requests set back for KV blocks", now, "preemptions")
        self._infos = [
            families.info(name, "What is served; always 1", labels)
            for name, labels in (infos or {}).items()
        ]
        self._count(families)
        self._tokens(families, longest)
        self._times(families)

    def _count(self, families: MetricFamilies) -> None:
        counter = families.counter
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens processed")
        self._generation_tokens = counter("generation_tokens", "Tokens generated")
        self._prefix_queries = counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache"
        )
        self._prefix_hits = counter("prefix_cache_hits", "Prompt tokens found in the prefix cache")
        self._success = families.counters("request_success", "Requests ended", "finished_reason")
        for reason in _REASONS.values():
            self._success(reason)
        self._rejections = _rejections(families)

    def _tokens(self, families: MetricFamilies, longest: int) -> None:
        buckets = _one_two_five(longest)
        self._prompt_length = families.histogram(
            "request_prompt_tokens", "Tokens of a prompt", buckets
        )
        self._answer_length = families.histogram(
            "request_generation_tokens", "Tokens generated for a request", buckets
        )
        self._longest_choice = families.histogram(
            "request_max_num_generation_tokens", "Tokens of a request's longest choice", buckets
        )
        self._max_tokens = families.histogram(
            "request_params_max_tokens", "Most tokens that a request allows", buckets
        )
        self._choices = families.histogram(
            "request_params_n", "Choices that a request asks for", _CHOICE_BUCKETS
        )

    def _times(self, families: MetricFamilies) -> None:
        self._ttft = families.histogram(
            "time_to_first_token_seconds", "Submission to first token", _FIRST_BUCKETS
        )
        self._itl = families.histogram(
            "inter_token_latency_seconds", "Between tokens of a request", _TOKEN_BUCKETS
        )
        self._tpot = families.histogram(
            "request_time_per_output_token_seconds",
            "Mean time of a request's tokens after the first",
            _TOKEN_BUCKETS,
        )
        self._e2e = families.histogram(
            "e2e_request_latency_seconds", "Submission to last token", _REQUEST_BUCKETS
        )
        self._queue = families.histogram(
            "request_queue_time_seconds", "Submission to first computation", _REQUEST_BUCKETS
        )
        self._prefill = families.histogram(
            "request_prefill_time_seconds", "First computation to first token", _REQUEST_BUCKETS
        )
        self._decode = families.histogram(
            "request_decode_time_seconds", "First token to last token", _REQUEST_BUCKETS
        )
        self._inference = families.histogram(
            "request_inference_time_seconds", "First computation to last token", _REQUEST_BUCKETS
        )

    def __call__(self, stream: RequestStream, delta: Delta, now: float) -> None:
        """Count a delta that ``stream`` is about to get (a `StreamObserver`)."""
        count = len(delta.token_ids)
        if count:
            if stream.last_token_at is None:
                self._ttft.observe(now - stream.submitted_at)
                self._prompt_tokens.inc(stream.prompt_tokens)
            else:
                gap = (now - stream.last_token_at) / count
                for _ in range(count):
                    self._itl.observe(gap)
            self._generation_tokens.inc(count)
        done = delta.completion
        if done is None:
            return
        self._success(_REASONS[done.finish_reason]).inc()
        if done.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._e2e.observe(now - stream.submitted_at)
            self._finished(done)

    def asked(self, params: Sequence[SamplingParams]) -> None:
        """Count what requests ask for that have just been submitted."""
        for one in params:
            self._choices.observe(one.n)
            if one.max_tokens:
                self._max_tokens.observe(one.max_tokens)

    def rejection(self, reason: Refusal) -> None:
        """Count a request that was not admitted."""
        self._rejections(reason).inc()

    def retire(self) -> None:
        """The model is unloaded: its counters stay, and nothing runs."""
        last = replace(self._stats(), running=0, waiting=0, kv_blocks_used=0)
        self._stats = lambda: last
        for take_away in self._infos:
            take_away()
        self._infos.clear()

    def _finished(self, done: Completion) -> None:
        """Count an answer that ended by itself."""
        usage, times = done.usage, done.timings
        self._prefix_queries.inc(usage.prompt_tokens)
        self._prefix_hits.inc(usage.cached_tokens)
        self._prompt_length.observe(usage.prompt_tokens)
        self._answer_length.observe(usage.completion_tokens)
        choices = done.choices or (done,)
        self._longest_choice.observe(max(len(choice.token_ids) for choice in choices))
        decode = times.total_s - times.ttft_s
        self._queue.observe(times.queue_s)
        self._prefill.observe(times.ttft_s - times.queue_s)
        self._decode.observe(decode)
        self._inference.observe(times.total_s - times.queue_s)
        if len(done.token_ids) > 1:
            self._tpot.observe(decode / (len(done.token_ids) - 1))

    def _kv_usage(self) -> float:
        stats = self._stats()
        return stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0


def _rejections(families: MetricFamilies) -> Callable[[Refusal], Counter]:
    rejections = families.counters("admission_rejections", "Requests refused", "reason")
    for refusal in Refusal:
        rejections(refusal)
    return rejections


def _one_two_five(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20 ... up to ``most``."""
    steps = (digit * 10.0**power for power in itertools.count() for digit in (1, 2, 5))
    return tuple(itertools.takewhile(lambda step: step <= max(most, 1), steps))
