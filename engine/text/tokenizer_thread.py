"""Builds a tokenizer in another thread, beside the packing of weights.

A vocabulary takes tenths of a second in Python and in Rust; the C kernels that pack weights let
Python run meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from ...loaders.base import TokenizerSource
from .collector import collector_paused
from .tokenizer import Tokenizer

LayersDone = Callable[[int, int], None]


class TokenizerThread:
    """A tokenizer under way; as a context it ends with its thread.

    Args:
        source: the vocabulary.
        rows: of the model's embedding.
    """

    def __init__(self, source: TokenizerSource, rows: int) -> None:
        self._pool = ThreadPoolExecutor(1, "halfbyte-tokenizer")
        self._future = self._pool.submit(_build, source, rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()

    def result(self) -> Tokenizer:
        """The tokenizer, when it is built. Raises TokenizerError as ``Tokenizer.from_source``."""
        return self._future.result()

    def beside(self, progress: LayersDone | None) -> LayersDone:
        """``progress`` that also raises what is wrong with the vocabulary, once that is known.

        Otherwise a large model would be packed to its end and refused then.
        """

        def told(done: int, total: int) -> None:
            if self._future.done():
                self._future.result()
            if progress is not None:
                progress(done, total)

        return told


def _build(source: TokenizerSource, rows: int) -> Tokenizer:
    with collector_paused():
        return Tokenizer.from_source(source, rows)
