"""From a model name to a running engine, with progress bars and nothing on stdout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .console import progress_bar, warn

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.request import Delta, SamplingParams


def fetch_default(model: str) -> None:
    """Pull a registered model that is not there yet; check that any other exists.

    Raises ModelNotFoundError or DownloadError before torch is imported.
    """
    from ..loaders.store import ensure_model

    with progress_bar(f"pulling {model}") as progress:
        ensure_model(model, progress)


@contextlib.contextmanager
def open_engine(model: str, options: dict[str, Any]) -> Iterator[Engine]:
    """An engine for the block. Raises HalfbyteError subclasses from loading."""
    fetch_default(model)
    with progress_bar(f"loading {model}", unit="steps") as progress:
        from ..engine.engine import Engine

        engine = Engine(model, progress=progress, **options)
    for warning in engine.report.warnings:
        warn(warning)
    with engine:
        yield engine


def run_one(
    engine: Engine,
    prompt: str | list[int],
    params: SamplingParams,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[Delta]:
    """Deltas of one answer; ``interrupted`` is asked after every step and cancels the request.

    The last delta carries the completion, cancelled or not. Raises RequestError at once for an
    unusable prompt.
    """
    request = engine.submit(prompt, params)
    done, cancelled = False, False
    try:
        while not done:
            for delta in engine.step():
                if delta.request_id == request:
                    done = delta.completion is not None
                    yield delta
            if not done and not cancelled and interrupted():
                engine.cancel(request)
                cancelled = True
    finally:
        if not done:
            engine.cancel(request)
