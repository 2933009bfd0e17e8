"""Metrics of loading and unloading."""

from __future__ import annotations

from collections.abc import Callable

from ..metric_families import Exposition, MetricFamilies


class LoadMetrics:
    """How often a model was loaded and unloaded, and whether it is there.

    Args:
        exposition: the families of the server.
        model_name: value of the label of that name.
        there: whether the model is loaded; called at each scrape.
    """

    def __init__(self, exposition: Exposition, model_name: str, there: Callable[[], bool]) -> None:
        families = MetricFamilies(exposition, model_name)
        families.gauge("model_loaded", "1 while the model is loaded", lambda: float(there()))
        self._loads = families.counter("model_loads", "Times that the model was loaded")
        self._unloads = families.counter("model_unloads", "Times that the model was unloaded")

    def loaded(self) -> None:
        """The model was loaded."""
        self._loads.inc()

    def unloaded(self) -> None:
        """The model was unloaded."""
        self._unloads.inc()
