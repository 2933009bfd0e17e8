"""Helpers for the command line's tests: the real program, and an engine that needs no model."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from halfbyte.cli.main import main
from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import (
    Completion,
    Delta,
    FinishReason,
    Timings,
    Usage,
)
from halfbyte.errors import RequestError

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "fixtures" / "gguf-q4_0-spm-llama" / "model.gguf"


def halfbyte(
    *args: str, stdin: bytes = b"", env: dict[str, str] | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run the installed ``halfbyte`` program without a terminal."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "halfbyte"), *args],
        input=stdin,
        capture_output=True,
        timeout=timeout,
        env={**os.environ, "COLUMNS": "80", **(env or {})},
        check=False,
    )
    out, err = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def run_here(*args: str) -> int:
    """Run ``main`` in this process without anything to read; its exit code."""
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO())
    try:
        with pytest.raises(SystemExit) as caught:
            main(list(args))
    finally:
        sys.stdin = stdin
        for name, handler in before.items():
            signal.signal(name, handler)
    assert isinstance(caught.value.code, int)
    return caught.value.code


class FakeTokenizer:
    """One id a character; a chat is ``role:content`` lines."""

    has_chat_template = True

    def encode(self, text: str, **kwargs: Any) -> list[int]:
        return [ord(c) for c in text]

    def encode_chat(self, messages: Sequence[Any], **kwargs: Any) -> list[int]:
        return [ord(c) for m in messages for c in f"{m['role']}:{m['content']}\n"]


class FakeEngine:
    """Answers each prompt with its own text upside down, one word a step.

    ``delay`` is slept in every step; prompts longer than ``max_context`` are refused; a prompt
    that holds "boom" ends with an error, one that holds "hush" at once.
    """

    name = "fake"
    backend = "none"

    def __init__(self, *, max_context: int = 400, delay: float = 0.0) -> None:
        self.max_context = max_context
        self.delay = delay
        self.tokenizer = FakeTokenizer()
        self.memory = SimpleNamespace(bytes_per_token=1024, kv_dtype="float16")
        self.weight_bytes = 3 << 20
        self.prompts: list[str] = []
        self.params: list[SamplingParams] = []
        self.cancelled: set[str] = set()
        self._live: dict[str, tuple[str, list[str], list[str], SamplingParams]] = {}

    def submit(self, prompt: str | list[int], params: SamplingParams) -> str:
        text = prompt if isinstance(prompt, str) else "".join(map(chr, prompt))
        if len(text) > self.max_context:
            raise RequestError("too long", code="context_length_exceeded", hint="raise max_context")
        name = f"r{len(self.prompts)}"
        self.prompts.append(text)
        self.params.append(params)
        last = text.strip().rpartition(":")[2]
        words = [word + " " for word in last[::-1].split()] or ["ok "]
        self._live[name] = (text, words, [], params)
        return name

    def cancel(self, request_id: str) -> None:
        self.cancelled.add(request_id)

    def has_work(self) -> bool:
        return bool(self._live)

    def step(self) -> list[Delta]:
        import time

        time.sleep(self.delay)
        deltas = []
        for name in list(self._live):
            text, words, said, params = self._live[name]
            if name in self.cancelled:
                deltas.append(self._end(name, "", FinishReason.CANCELLED))
            elif "boom" in text:
                deltas.append(self._end(name, "", FinishReason.ERROR))
            elif "hush" in text:
                deltas.append(self._end(name, "", FinishReason.STOP))
            else:
                word = words[len(said)]
                said.append(word)
                full = len(said) == params.max_tokens
                if len(said) == len(words) or full:
                    reason = FinishReason.LENGTH if full else FinishReason.STOP
                    deltas.append(self._end(name, word, reason))
                else:
                    deltas.append(Delta(name, word, (1,)))
        return deltas

    def _end(self, name: str, word: str, reason: FinishReason) -> Delta:
        text, _, said, _ = self._live.pop(name)
        completion = Completion(
            text="".join(said),
            token_ids=[1] * len(said),
            finish_reason=reason,
            usage=Usage(len(text), len(said)),
            timings=Timings(0.0, 0.1, 0.5, 100.0, 20.0),
            error="it went boom" if reason is FinishReason.ERROR else None,
        )
        return Delta(name, word, (1,) if word else (), completion)

    def stats(self) -> Any:
        from halfbyte.engine.run.stats import EngineStats

        return EngineStats(0, 0, 0, 10, 5, 6, 7, 8, 9, {"stop": 1})


@contextlib.contextmanager
def fake_open(engine: FakeEngine) -> Iterator[FakeEngine]:
    """Stands in for ``open_engine``."""
    yield engine
