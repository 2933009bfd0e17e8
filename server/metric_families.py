"""Prometheus families with one prefix and the same labels, in a registry of their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ..engine.run.stats import STEP_BOUNDS, EngineStats


class Exposition:
    """All families of a server; those of the process (memory, files) are there already.

    A family that is asked for again is the one that was made first: several models have series of
    the same families, and one that is loaded again goes on with its own.

    Args:
        prefix: what the names begin with, before the colon.
    """

    def __init__(self, prefix: str = "halfbyte") -> None:
        self._prefix = prefix
        self._registry = CollectorRegistry()
        self._families: dict[str, Any] = {}
        ProcessCollector(registry=self._registry)

    def family(self, kind: type, name: str, text: str, labels: Sequence[str], **more: Any) -> Any:
        """The family of a name; only the first call makes one.

        Args:
            kind: class of prometheus_client.
            name: without the prefix.
            text: what it is about.
            labels: names of all of its labels.
            more: what else ``kind`` takes.
        """
        return self._known(
            name, lambda full: kind(full, text, [*labels], registry=self._registry, **more)
        )

    def read_at_scrape(self, name: str, text: str, write: _Write) -> _ReadAtScrape:
        """The family of a name that the engines have counted themselves."""

        def make(full: str) -> _ReadAtScrape:
            collector = _ReadAtScrape(full, text, write)
            self._registry.register(collector)
            return collector

        return self._known(name, make)

    def render(self) -> bytes:
        """The exposition text, UTF-8."""
        return generate_latest(_Timeless(self._registry))

    def _known(self, name: str, make: Callable[[str], Any]) -> Any:
        if name not in self._families:
            self._families[name] = make(f"{self._prefix}:{name}")
        return self._families[name]


class MetricFamilies:
    """Series of one model in the families of a server.

    Args:
        exposition: has the families.
        model_name: value of the label of that name; the label ``engine`` is 0, as vLLM has it
            where there is one engine.
    """

    def __init__(self, exposition: Exposition, model_name: str) -> None:
        self._exposition = exposition
        self._labels = {"model_name": model_name, "engine": "0"}

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge that is read at each scrape."""
        family = self._exposition.family(Gauge, name, text, [*self._labels])
        family.labels(**self._labels).set_function(read)

    def info(self, name: str, text: str, labels: Mapping[str, str]) -> Callable[[], None]:
        """A gauge that is always 1 and tells by its labels; returns what takes it away."""
        family = self._exposition.family(Gauge, name, text, [*labels])
        family.labels(**labels).set(1)
        return lambda: family.remove(*labels.values())

    def counter(self, name: str, text: str) -> Counter:
        """A counter with the labels that all have."""
        return self.counters(name, text)()

    def counters(self, name: str, text: str, *more: str) -> Callable[..., Counter]:
        """A counter with more labels: called with their values, it gives that series."""
        family = self._exposition.family(Counter, name, text, [*self._labels, *more])
        return lambda *values: family.labels(*self._labels.values(), *values)

    def histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        """A histogram with these upper bounds."""
        family = self._exposition.family(Histogram, name, text, [*self._labels], buckets=buckets)
        return family.labels(**self._labels)

    def tally(self, name: str, text: str, stats: Callable[[], EngineStats], field: str) -> None:
        """A counter that is a field of what the engine itself has counted."""

        def write(full: str, text: str, series: _Series) -> Metric:
            family = CounterMetricFamily(full, text, labels=[*self._labels])
            for labels, read in series:
                family.add_metric([*labels.values()], getattr(read(), field))
            return family

        self._read(name, text, write, stats)

    def step_sizes(self, name: str, text: str, stats: Callable[[], EngineStats]) -> None:
        """A histogram of the tokens of a step, which the engine itself has tallied."""
        self._read(name, text, _step_sizes, stats)

    def _read(self, name: str, text: str, write: _Write, stats: Callable[[], EngineStats]) -> None:
        collector = self._exposition.read_at_scrape(name, text, write)
        collector.add(self._labels, stats)


_Series = list[tuple[Mapping[str, str], Callable[[], EngineStats]]]
_Write = Callable[[str, str, _Series], Metric]


class _ReadAtScrape(Collector):
    """A family whose numbers the engines keep."""

    def __init__(self, name: str, text: str, write: _Write) -> None:
        self._name, self._text, self._write = name, text, write
        self._series: dict[str, tuple[Mapping[str, str], Callable[[], EngineStats]]] = {}

    def add(self, labels: Mapping[str, str], stats: Callable[[], EngineStats]) -> None:
        """Read a model's series there from now on."""
        self._series[labels["model_name"]] = labels, stats

    def collect(self) -> Iterator[Metric]:
        """The family now."""
        yield self._write(self._name, self._text, [*self._series.values()])


def _step_sizes(name: str, text: str, series: _Series) -> Metric:
    family: HistogramMetricFamily | None = None
    bounds = [*map(float, STEP_BOUNDS), float("inf")]
    for labels, read in series:
        family = family or HistogramMetricFamily(name, text, labels=[*labels])
        stats = read()
        counts = itertools.accumulate(stats.step_sizes)
        buckets = [
            (str(b) if b < float("inf") else "+Inf", c) for b, c in zip(bounds, counts, strict=True)
        ]
        family.add_metric([*labels.values()], buckets, stats.step_tokens)
    return family or HistogramMetricFamily(name, text)


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
