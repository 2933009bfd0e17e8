"""An engine without a model: the contract of halfbyte.Engine, deterministic answers, faults.

One token is one byte of UTF-8, so every non-ASCII character is split across tokens. Answers are
the engine's ``script`` where there is one; else greedy ones echo the prompt and sampled ones are a
function of prompt, seed and position.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from halfbyte.engine.config import EngineConfig
from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import (
    Completion,
    Delta,
    FinishReason,
    MemoryFault,
    PromptReader,
    Sampled,
    Timings,
    Usage,
)
from halfbyte.engine.run.stats import EngineStats, StepTally
from halfbyte.engine.text.token_bound import TokenLimit
from halfbyte.errors import EngineDeadError, RequestError, TemplateError

BOS, EOS, TURN, END = 256, 257, 258, 259
LETTERS = ["a", "b", " ", "é", "漢", "🙂", "\n", "z"]
# Probabilities of a byte that is drawn, and of those that differ from it by their lowest bits.
ODDS = (0.6, 0.2, 0.1, 0.05, 0.02)


class FakeTokenizer:
    """Bytes and four special tokens; encoding waits while ``gate`` is clear."""

    vocab_size = 260
    bos_id = BOS
    eos_ids = frozenset({EOS})
    special_ids = frozenset({BOS, EOS, TURN, END})
    has_chat_template = True
    named_tokens: Mapping[str, str] = {"eos_token": "<end>"}
    takes_tools = True
    template = "{{ messages }}"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.rendered: list[dict[str, Any]] = []

    def encode(
        self,
        text: str,
        *,
        add_bos: bool | None = None,
        parse_special: bool = True,
        limit: TokenLimit | None = None,
    ) -> list[int]:
        self.gate.wait()
        ids = ([BOS] if add_bos is not False and text else []) + list(text.encode())
        if limit is not None:
            limit.check(len(ids))
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return b"".join(self.token_bytes(i) for i in ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        marks = {TURN: b"<turn>", END: b"<end>"}
        ids = self.encode_chat(messages, add_generation_prompt=add_generation_prompt, **kwargs)
        return b"".join(marks.get(i) or self.token_bytes(i) for i in ids).decode()

    def template_source(self, *, tools: bool) -> str:
        return self.template

    def special_token(self, text: str) -> int | None:
        return None

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        limit: TokenLimit | None = None,
        **kwargs: Any,
    ) -> list[int]:
        if messages[0]["role"] == "assistant":
            raise TemplateError(
                "the chat template refused the conversation: it begins with assistant"
            )
        self.gate.wait()
        self.rendered.append({"messages": messages, **kwargs})
        ids = []
        for message in messages:
            content = message.get("content", "")
            if not isinstance(content, str):  # its template wants texts
                content = "\n".join(part["text"] for part in content)
            ids += [TURN, *f"{message['role']}\n{content}".encode(), END]
        ids += [TURN] if add_generation_prompt else []
        if continue_final_message:
            ids.pop()
        if limit is not None:
            limit.check(len(ids))
        return ids


class _Text:
    """Grows a text byte by byte, holding back what may become a stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._all = ""
        self._sent = 0
        self.stopped: str | None = None

    def feed(self, piece: bytes, *, final: bool = False) -> str:
        self._all += self._decoder.decode(piece, final)
        hits = [(self._all.find(s), s) for s in self._stop if s in self._all]
        if hits and self.stopped is None:
            at, self.stopped = min(hits)
            self._all = self._all[:at]
        end = len(self._all)
        if not final and self.stopped is None:
            held = [n for s in self._stop for n in range(1, len(s)) if self._all.endswith(s[:n])]
            end -= max(held, default=0)
        out, self._sent = self._all[self._sent : end], max(end, self._sent)
        return out

    @property
    def text(self) -> str:
        return self._all


def rated(token: int, count: int) -> Sampled:
    """A token with its probability and the ``count`` likeliest; a special one is certain."""
    if token >= 256:
        return Sampled(token, 0.0, ((token, 0.0),)[:count])
    logprobs = [math.log(p) for p in ODDS]
    return Sampled(token, logprobs[0], tuple((token ^ i, logprobs[i]) for i in range(5))[:count])


class _Request:
    def __init__(
        self,
        name: str,
        prompt: list[int],
        params: SamplingParams,
        cached: int,
        script: str | None = None,
    ) -> None:
        self.script = script
        self.name, self.prompt, self.params, self.cached = name, prompt, params, cached
        self.seed = params.seed
        if not params.greedy and self.seed is None:
            self.seed = int.from_bytes(os.urandom(7), "big")
        scripted = params.greedy or script is not None
        self.source = self._greedy() if scripted else self._sampled()
        self.text = _Text(params.stop)
        self.tokens: list[int] = []
        self.sampled: list[Sampled] = []
        self.offsets: list[int] = []
        self.submitted = time.perf_counter()
        self.started = self.first = 0.0

    def _greedy(self) -> Iterator[int]:
        """What follows the last turn mark, then the end; over and over."""
        ids = self.prompt[:-1] if self.prompt[-1] == TURN else self.prompt
        while self.script is not None:
            yield from self.script.encode()
            yield EOS
        marks = [i for i, t in enumerate(ids) if t == TURN]
        plain = [t for t in ids[marks[-1] + 1 if marks else 0 :] if t < 256]
        while True:
            yield from b"echo: "
            yield from plain
            yield EOS

    def _sampled(self) -> Iterator[int]:
        for position in itertools.count():
            key = f"{self.prompt}/{self.seed}/{position}".encode()
            yield from LETTERS[hashlib.sha256(key).digest()[0] % len(LETTERS)].encode()

    @property
    def share(self) -> int:
        """What it has of the next step's tokens."""
        return 1 if self.tokens else len(self.prompt) - self.cached

    def next_token(self) -> int:
        token = next(self.source)
        while token == EOS and len(self.tokens) < self.params.min_tokens:
            token = next(self.source)
        self.tokens.append(token)
        if self.params.logprobs is not None:
            self.sampled.append(rated(token, self.params.logprobs))
            self.offsets.append(len(self.text.text))
        self.first = self.first or time.perf_counter()
        return token


class FakeEngine:
    """Contract of halfbyte.Engine over `_Request`.

    Faults to set: ``step_s`` (seconds each step sleeps), ``failures`` (exceptions that the next
    steps raise), ``gate`` (steps wait while it is clear).
    """

    name = "fake-model"

    def __init__(self, max_context: int = 512, **options: Any) -> None:
        self.config = EngineConfig(**options)
        self.max_context = max_context
        self.tokenizer = FakeTokenizer()
        self.startup = {"load": 0.0}
        self.step_s = 0.0
        self.failures: list[BaseException] = []
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False
        self.max_running = 0
        self.threads: set[int] = set()
        self.tally = StepTally()
        self._stats = EngineStats(kv_blocks_total=100)
        self._ids = itertools.count()
        self._waiting: list[_Request] = []
        self._running: list[_Request] = []
        self._cancelled: list[_Request] = []
        self._seen: list[tuple[str, list[int]]] = []
        self.priorities: list[int] = []
        self.asked: list[SamplingParams] = []
        self.script: str | None = None

    def prepare(self, params: SamplingParams) -> None:
        """Grammars are not followed here."""

    def submit(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        reader: PromptReader | None = None,
    ) -> str:
        assert reader is None, "nothing is computed here"
        self.threads.add(threading.get_ident())
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        if not ids:
            raise RequestError("the prompt is empty", param="prompt")
        for token in ids:
            if not 0 <= token < self.tokenizer.vocab_size:
                raise RequestError(f"prompt holds unknown token id {token}", param="prompt")
        name = request_id or f"r{next(self._ids)}"
        cached = self._cached(ids, cache_salt)
        self._waiting.append(_Request(name, ids, params, cached, self.script))
        self.asked.append(params)
        self._seen.append((cache_salt, ids))
        self.priorities.append(priority)
        return name

    def _cached(self, ids: list[int], salt: str) -> int:
        """Tokens of the longest prompt beginning seen under this salt, in blocks of 16."""
        same = [
            len(list(itertools.takewhile(lambda p: p[0] == p[1], zip(ids[:-1], old, strict=False))))
            for other, old in self._seen
            if other == salt
        ]
        return max(same, default=0) // 16 * 16

    def cancel(self, request_id: str) -> None:
        for queue in (self._waiting, self._running):
            for request in [r for r in queue if r.name == request_id]:
                queue.remove(request)
                self._cancelled.append(request)

    def begun(self, request_id: str) -> bool:
        return all(request.name != request_id for request in self._waiting)

    def has_work(self) -> bool:
        return bool(self._waiting or self._running or self._cancelled)

    def step(self) -> list[Delta]:
        self.threads.add(threading.get_ident())
        self.gate.wait()
        if self.failures:
            return self._fail(self.failures.pop(0))
        time.sleep(self.step_s)
        self.tally.add(sum(r.share for r in (*self._running, *self._waiting)))
        tally = self.tally
        self.count(steps=tally.steps, step_tokens=tally.tokens, step_sizes=tally.sizes)
        out = [self._end(r, FinishReason.CANCELLED, ()) for r in self._cancelled]
        self._cancelled.clear()
        while self._waiting and len(self._running) < self.config.max_batch:
            request = self._waiting.pop(0)
            request.started = time.perf_counter()
            self._running.append(request)
        self.max_running = max(self.max_running, len(self._running))
        for request in list(self._running):
            out.append(self._advance(request))
        return out

    def _fail(self, error: BaseException) -> list[Delta]:
        """What a failed step does in the engine: its requests end, unless the engine is dead."""
        if isinstance(error, EngineDeadError):
            raise error
        self._running += self._waiting
        self._waiting.clear()
        told = f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError):
            told = MemoryFault(told)
        ended = []
        for request in list(self._running):
            delta = self._end(request, FinishReason.ERROR, ())
            assert delta.completion is not None
            ended.append(replace(delta, completion=replace(delta.completion, error=told)))
        return ended

    def _advance(self, request: _Request) -> Delta:
        params = request.params
        if params.max_tokens == 0:
            return self._end(request, FinishReason.LENGTH, ())
        token = request.next_token()
        self.count(generation_tokens=self._stats.generation_tokens + 1)
        ends = (token == EOS and not params.ignore_eos) or token in params.stop_token_ids
        text = "" if ends else request.text.feed(self.tokenizer.token_bytes(token))
        if ends or request.text.stopped is not None:
            return self._end(request, FinishReason.STOP, (token,), text)
        limit = params.max_tokens or self.max_context - len(request.prompt)
        if len(request.tokens) >= limit:
            return self._end(request, FinishReason.LENGTH, (token,), text)
        return Delta(
            request.name,
            text,
            (token,),
            logprobs=tuple(request.sampled[-1:]),
            text_offsets=tuple(request.offsets[-1:]),
        )

    def _end(
        self, request: _Request, reason: FinishReason, tokens: tuple[int, ...], text: str = ""
    ) -> Delta:
        if request in self._running:
            self._running.remove(request)
        text += request.text.feed(b"", final=True)
        last = request.tokens[-1] if request.tokens else None
        stopped: str | int | None = request.text.stopped
        if last in request.params.stop_token_ids:
            stopped = last
        usage = Usage(len(request.prompt), len(request.tokens), request.cached)
        finished = self._stats.finished
        finished[reason.value] = finished.get(reason.value, 0) + 1
        started = request.started or time.perf_counter()
        shown = request.params.logprobs is not None
        completion = Completion(
            request.text.text,
            list(request.tokens),
            reason,
            usage,
            Timings(
                queue_s=started - request.submitted,
                ttft_s=(request.first or started) - request.submitted,
                total_s=time.perf_counter() - request.submitted,
            ),
            request.seed,
            stopped,
            logprobs=tuple(request.sampled) if shown else None,
            text_offsets=tuple(request.offsets) if shown else None,
        )
        return Delta(
            request.name,
            text,
            tokens,
            completion,
            logprobs=tuple(request.sampled[-1:] if tokens else ()),
            text_offsets=tuple(request.offsets[-1:] if tokens else ()),
            finish=completion.finish_reason,
            stop_reason=completion.stop_reason,
        )

    def count(self, **counts: Any) -> None:
        """Set counters."""
        self._stats = replace(self._stats, **counts)

    def stats(self) -> EngineStats:
        held = len(self._running)
        return replace(self._stats, running=held, waiting=len(self._waiting), kv_blocks_used=held)

    def close(self) -> None:
        self.closed = True
