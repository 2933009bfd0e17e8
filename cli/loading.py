"""From a model name to a running engine, with progress bars and nothing on stdout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .asking import Asking
from .console import progress_bar, warn

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.params import SamplingParams
    from ..engine.request import Delta

_TEMPLATE_ROOM = 64


def fetch_model(model: str) -> None:
    """Pull the model if it is a registered one that is not here yet; any other must exist.

    Raises ModelNotFoundError or DownloadError before torch is imported.
    """
    from ..loaders.store.model_store import ensure_model

    with progress_bar(f"pulling {model}") as progress:
        ensure_model(model, progress)


@contextlib.contextmanager
def open_engine(model: str, options: dict[str, Any]) -> Iterator[Engine]:
    """An engine for the block. Raises HalfbyteError subclasses from loading."""
    fetch_model(model)
    with progress_bar(f"loading {model}", unit="steps") as progress:
        from ..engine.engine import Engine

        engine = Engine(model, progress=progress, **options)
    for warning in engine.report.warnings:
        warn(warning)
    with engine:
        yield engine


def check_room(model: str, max_context: int, text: str, asking: Asking) -> None:
    """Refuse a prompt that the context cannot hold before the weights are read.

    Tokens are counted only when there could be too many: each has at least one byte.

    Raises RequestError, and what opening the model raises.
    """
    from ..loaders import open_checkpoint
    from ..loaders.store.model_store import resolve_model

    fetch_model(model)
    checkpoint = open_checkpoint(resolve_model(model))
    try:
        own = checkpoint.config.max_position
        limit = min(max_context or own, own)
        if len((asking.system + text).encode()) + _TEMPLATE_ROOM <= limit:
            return
        from ..engine.text.tokenizer import Tokenizer

        tokenizer = Tokenizer.from_source(checkpoint.tokenizer(), checkpoint.config.vocab_size)
    finally:
        checkpoint.close()
    prompt = asking.prompt(tokenizer, text)
    count = len(tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
    if count >= limit:
        from halfbyte.errors import RequestError

        more = (
            f"raise max_context, up to {own}" if limit < own else "the model was made for no more"
        )
        raise RequestError(
            f"the prompt has {count} tokens, but the context holds {limit} with the answer",
            param="prompt",
            code="context_length_exceeded",
            hint=f"shorten the prompt; {more}",
        )


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
