"""llama-cpp-python as one of the engines, in a process of its own."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from halfbyte.errors import ConfigError

from ..engine import EngineCase
from .peer import Contestant, Setting, only_gguf
from .worker import Worker, answer

_PACKAGE = "llama-cpp-python"


class LlamaCppPython:
    """llama.cpp inside its Python package; a ``Peer``.

    Its decode evaluates given tokens and samples nothing, as llama-bench does.

    Raises:
        ConfigError: it is not installed.
    """

    def __init__(self) -> None:
        self.label = _PACKAGE
        try:
            self._version = metadata.version(_PACKAGE)
        except metadata.PackageNotFoundError:
            raise ConfigError(f"{_PACKAGE} is not installed", hint="run `make peers`") from None

    def lacks(self, model: Path, case: EngineCase) -> str:
        """See :class:`~.peer.Peer`."""
        return only_gguf(model) or ("it has no batched decode" if case.batch > 1 else "")

    def open(self, model: Path, setting: Setting) -> Contestant:
        """See :class:`~.peer.Peer`."""
        # llama.cpp's repacking for special instructions crashes on some machines with AMX.
        for plain in (False, True):
            try:
                worker = Worker(self.label, serve, str(model), setting, plain)
            except ConfigError as error:
                print(error, file=sys.stderr)
                continue
            special = "off: failed with them" if plain else "on"
            worker.facts = {"version": self._version, "special_instructions": special}
            return worker
        raise ConfigError(f"{_PACKAGE} cannot run {model.name} here")


def serve(pipe: Connection, model: str, setting: Setting, plain: bool) -> None:
    """The process: answer tests of a model; ``plain`` switches llama.cpp's repacking off."""

    def start() -> tuple[dict[str, Any], Callable[[EngineCase], float]]:
        module: Any = importlib.import_module("llama_cpp")
        inner = module.llama_cpp
        defaults = inner.llama_model_default_params

        def parameters() -> Any:
            values = defaults()
            values.use_extra_bufts = not plain
            return values

        inner.llama_model_default_params = parameters
        longest = max(setting.pp, setting.tg + 1)
        peer = module.Llama(
            model,
            n_ctx=longest,
            n_batch=max(setting.pp, 1),
            n_threads=setting.threads,
            n_threads_batch=setting.threads,
            verbose=False,
        )
        tokens = [(i * 7919) % (peer.n_vocab() - 200) + 100 for i in range(longest)]

        def run(case: EngineCase) -> float:
            peer.reset()
            if case.kind == "pp":
                begin = time.perf_counter()
                peer.eval(tokens[: case.tokens])
            else:
                peer.eval(tokens[:1])
                begin = time.perf_counter()
                for token in tokens[: case.tokens]:
                    peer.eval([token])
            return case.tokens / (time.perf_counter() - begin)

        for case in setting.cases:
            run(case)
        return {}, run

    answer(pipe, start)
