"""Prometheus families with one prefix and the same labels, in a registry of their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ..engine.run.stats import STEP_BOUNDS, EngineStats


class MetricFamilies:
    """Makes and renders families; those of the process (memory, files) are there already.

    Args:
        prefix: what the names begin with, before the colon.
        model_name: value of the label of that name; the label ``engine`` is 0, as vLLM has it
            where there is one engine.
    """

    def __init__(self, prefix: str, model_name: str) -> None:
        self._prefix = prefix
        self._labels = {"model_name": model_name, "engine": "0"}
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge that is read at each scrape."""
        family = Gauge(self._name(name), text, [*self._labels], registry=self._registry)
        family.labels(**self._labels).set_function(read)

    def info(self, name: str, text: str, labels: Mapping[str, str]) -> None:
        """A gauge that is always 1 and tells by its labels."""
        Gauge(self._name(name), text, [*labels], registry=self._registry).labels(**labels).set(1)

    def counter(self, name: str, text: str) -> Counter:
        """A counter with the labels that all have."""
        return self.counters(name, text)()

    def counters(self, name: str, text: str, *more: str) -> Callable[..., Counter]:
        """A counter with more labels: called with their values, it gives that series."""
        names = [*self._labels, *more]
        family = Counter(self._name(name), text, names, registry=self._registry)
        return lambda *values: family.labels(*self._labels.values(), *values)

    def http_counter(self, name: str, text: str, *labels: str) -> Counter:
        """A counter of what is not the model's, without the common labels."""
        return Counter(self._name(name), text, labels, registry=self._registry)

    def histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        """A histogram with these upper bounds."""
        family = Histogram(
            self._name(name), text, [*self._labels], buckets=buckets, registry=self._registry
        )
        return family.labels(**self._labels)

    def step_sizes(self, name: str, text: str, stats: Callable[[], EngineStats]) -> None:
        """A histogram of the tokens of a step, which the engine itself has tallied."""
        self._registry.register(_StepSizes(self._name(name), text, self._labels, stats))

    def render(self) -> bytes:
        """The exposition text, UTF-8."""
        return generate_latest(_Timeless(self._registry))

    def _name(self, name: str) -> str:
        return f"{self._prefix}:{name}"


class _StepSizes(Collector):
    def __init__(
        self, name: str, text: str, labels: dict[str, str], stats: Callable[[], EngineStats]
    ) -> None:
        self._name, self._text, self._labels, self._stats = name, text, labels, stats

    def collect(self) -> Iterator[Metric]:
        """The family now."""
        stats = self._stats()
        bounds = [*map(float, STEP_BOUNDS), float("inf")]
        counts = itertools.accumulate(stats.step_sizes)
        buckets = [
            (str(b) if b < float("inf") else "+Inf", c) for b, c in zip(bounds, counts, strict=True)
        ]
        family = HistogramMetricFamily(self._name, self._text, labels=[*self._labels])
        family.add_metric([*self._labels.values()], buckets, stats.step_tokens)
        yield family


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
