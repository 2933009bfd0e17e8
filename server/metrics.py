"""Prometheus metrics under ``halfbyte:``, with the suffixes that vLLM's dashboards know.

Token counters are fed by the very deltas and usage records that clients get, so that metrics and
usage agree. Each `Metrics` has its own registry: nothing is global, two servers do not clash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric

from ..engine.request import Delta, FinishReason
from ..engine.run.stats import EngineStats
from ..engine.serve.stream import RequestStream

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
_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "abort",
    FinishReason.ERROR: "error",
}


class Metrics:
    """All metrics of one server.

    Args:
        model_name: value of the ``model_name`` label.
        stats: reads the engine's counters; called at each scrape.
    """

    def __init__(self, model_name: str, stats: Callable[[], EngineStats]) -> None:
        self.registry = CollectorRegistry()
        self._model = model_name
        self._stats = stats
        self._preempted = 0
        self._gauge("num_requests_running", "Requests in the batch", lambda: stats().running)
        self._gauge("num_requests_waiting", "Requests in the queue", lambda: stats().waiting)
        self._gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", self._kv_usage)
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens processed")
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated")
        self._prefix_queries = self._counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache"
        )
        self._prefix_hits = self._counter(
            "prefix_cache_hits", "Prompt tokens found in the prefix cache"
        )
        self._preemptions = self._counter("num_preemptions", "Requests set back for KV blocks")
        self._disconnects = self._counter(
            "client_disconnects", "Requests whose client left before the end"
        )
        self._success = self._labelled("request_success", "Requests ended", "finished_reason")
        for reason in _REASONS.values():
            self._success.labels(model_name, reason)
        self._rejections = self._labelled("admission_rejections", "Requests refused", "reason")
        self._http = Counter(
            "halfbyte:http_requests",
            "HTTP responses by route and status",
            ["path", "status"],
            registry=self.registry,
        )
        self._ttft = self._histogram(
            "time_to_first_token_seconds", "Submission to first token", _FIRST_BUCKETS
        )
        self._itl = self._histogram(
            "inter_token_latency_seconds", "Between tokens of a request", _TOKEN_BUCKETS
        )
        self._e2e = self._histogram(
            "e2e_request_latency_seconds", "Submission to last token", _REQUEST_BUCKETS
        )
        self._queue = self._histogram(
            "request_queue_time_seconds", "Submission to first computation", _REQUEST_BUCKETS
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
        self._success.labels(self._model, _REASONS[done.finish_reason]).inc()
        if done.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._prefix_queries.inc(done.usage.prompt_tokens)
            self._prefix_hits.inc(done.usage.cached_tokens)
            self._e2e.observe(now - stream.submitted_at)
            self._queue.observe(done.timings.queue_s)

    def http(self, path: str, status: int) -> None:
        """Count a response; ``path`` must be a route, never what the client typed."""
        self._http.labels(path, str(status)).inc()

    def disconnect(self) -> None:
        """Count a client that left early."""
        self._disconnects.inc()

    def rejection(self, reason: str) -> None:
        """Count a request that was not admitted."""
        self._rejections.labels(self._model, reason).inc()

    def render(self) -> bytes:
        """The exposition text, UTF-8."""
        preempted = self._stats().preemptions
        self._preemptions.inc(preempted - self._preempted)
        self._preempted = preempted
        return generate_latest(_Timeless(self.registry))

    def _kv_usage(self) -> float:
        stats = self._stats()
        return stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        gauge = Gauge(f"halfbyte:{name}", text, ["model_name"], registry=self.registry)
        gauge.labels(self._model).set_function(read)

    def _counter(self, name: str, text: str) -> Counter:
        counter = Counter(f"halfbyte:{name}", text, ["model_name"], registry=self.registry)
        return counter.labels(self._model)

    def _labelled(self, name: str, text: str, label: str) -> Counter:
        return Counter(f"halfbyte:{name}", text, ["model_name", label], registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"halfbyte:{name}", text, ["model_name"], buckets=buckets, registry=self.registry
        )
        return histogram.labels(self._model)


class _Timeless(CollectorRegistry):
    """A registry's metrics without the ``_created`` samples, which double the text for nothing."""

    def __init__(self, inner: CollectorRegistry) -> None:
        super().__init__()
        self._inner = inner

    def collect(self) -> Iterator[Metric]:
        """All families, filtered."""
        for family in self._inner.collect():
            family.samples = [s for s in family.samples if not s.name.endswith("_created")]
            yield family
