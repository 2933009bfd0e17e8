"""A server's start as people see it: one table on stderr, the seconds of each phase, ready."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from .console import OnProgress, clean, human_bytes, is_terminal, loading_bar, wrapped
from .settings import GivenSetting

if TYPE_CHECKING:
    from ..engine.advise.start_plan import StartPlan
    from ..server.start import PlannedModel, StartFacts

_INDENT = 12


class ShownStart:
    """Tells of a start in lines; as a context it takes a bar away that is still there.

    Args:
        settings: what differs from the defaults.
        out: where to write; None is stderr.
    """

    def __init__(self, settings: Sequence[GivenSetting] = (), out: TextIO | None = None) -> None:
        self._settings = settings
        self._out = out or sys.stderr
        self._bar = contextlib.ExitStack()
        self._show: OnProgress | None = None

    def __enter__(self) -> ShownStart:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.close()

    def planned(self, facts: StartFacts) -> None:
        """The table."""
        for label, text in (*start_rows(facts), *self._rows()):
            self._row(label, text)
        for text in facts.warnings():
            self._row("WARNING", text)

    def progress(self, done: int, total: int) -> None:
        """A bar, on a terminal."""
        if self._show is None:
            self._show = self._bar.enter_context(loading_bar("loading"))
        self._show(done, total)

    def loaded(self, seconds: Mapping[str, float], warnings: Sequence[str]) -> None:
        """The phases, the whole first."""
        phases = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
        self._row("loaded in", f"{sum(seconds.values()):.2f} s: {phases}")
        for text in warnings:
            self._row("WARNING", text)

    def ready(self, facts: StartFacts) -> None:
        """The line that says where."""
        line = f"ready: {facts.url}/v1 serves {', '.join(facts.names)} (ctrl-C stops)"
        # Programs that start a server look for it: one line, unless somebody sees it on a screen.
        self._print(wrapped("", line, indent=0) if is_terminal(self._out) else line)

    def _row(self, label: str, text: str) -> None:
        self._print(wrapped(label, text, indent=_INDENT))

    def _print(self, text: str) -> None:
        print(clean(text), file=self._out, flush=True)

    def _rows(self) -> Iterator[tuple[str, str]]:
        label = "settings"
        for one in self._settings:
            yield label, f"{one.name} {one.value} ({one.origin})"
            label = ""


def start_rows(facts: StartFacts) -> list[tuple[str, str]]:
    """Label and text of each row of the table."""
    plan = facts.models[0].plan
    rows = _one_model(facts.models[0]) if len(facts.models) == 1 else _several_models(facts)
    return [
        *rows,
        ("batch", f"{plan.batch} requests, {plan.step_tokens} tokens a step"),
        ("URL", f"{facts.url}/v1"),
        ("page", f"{facts.url}/" if facts.page else "none"),
        ("API key", "required" if facts.keyed else "none"),
    ]


def _one_model(model: PlannedModel) -> list[tuple[str, str]]:
    plan, memory = model.plan, model.plan.memory
    names = [name for name in model.names if name != plan.name]
    called = f", called {', '.join(names)}" if names else ""
    return [
        ("model", f"{plan.name}{called}"),
        ("format", _format(plan)),
        ("backend", _backend(plan)),
        ("memory", f"{_memory(plan)}, {human_bytes(memory.free_bytes)} free"),
        (
            "KV cache",
            f"{memory.blocks} blocks of {memory.block_size} tokens, {memory.kv_dtype}",
        ),
        ("context", f"{memory.max_context} tokens"),
    ]


def _several_models(facts: StartFacts) -> list[tuple[str, str]]:
    rows = []
    for model in facts.models:
        when = "loaded now" if model.at_start else "loaded when asked for"
        rows += [
            ("model", f"{', '.join(model.names)} ({when})"),
            ("", _format(model.plan)),
            ("", f"{_memory(model.plan)}; context {model.plan.memory.max_context} tokens"),
        ]
    return [
        *rows,
        ("memory", f"{human_bytes(facts.room)} for all models together"),
        ("backend", _backend(facts.models[0].plan)),
    ]


def _format(plan: StartPlan) -> str:
    formats = ", ".join(f"{label} {human_bytes(size)}" for label, size in plan.formats.items())
    return f"{plan.architecture} in {plan.file_format}: {formats}"


def _backend(plan: StartPlan) -> str:
    return f"{plan.backend}, {plan.detail}" if plan.detail else plan.backend


def _memory(plan: StartPlan) -> str:
    return (
        f"weights {human_bytes(plan.weights)}, KV cache {human_bytes(plan.memory.kv_bytes)}, "
        f"workspace {human_bytes(plan.workspace)}; {human_bytes(plan.most)} in all"
    )
