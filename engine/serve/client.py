"""What a server needs of an engine, wherever that engine runs.

`AsyncEngine` (a thread) implements `EngineClient`; nothing here knows how the deltas come in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..config import EngineConfig
from ..params import SamplingParams
from ..request import Delta, PromptReader
from ..run.stats import EngineStats
from ..text.token_bound import TokenLimit
from .stream import RequestStream


class TextCodec(Protocol):
    """The part of a tokenizer that a server uses."""

    @property
    def vocab_size(self) -> int:
        """Number of known token ids."""
        ...

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` can work."""
        ...

    @property
    def named_tokens(self) -> Mapping[str, str]:
        """Text of the tokens that have a role, by its name (``eos_token`` ...)."""
        ...

    @property
    def takes_tools(self) -> bool:
        """Whether the chat template writes tools into the prompt; raises TemplateError."""
        ...

    def template_source(self, *, tools: bool) -> str:
        """The chat template for conversations with tools, or without; "" when there is none."""
        ...

    def special_token(self, text: str) -> int | None:
        """The special token that is written so, which decoded text hides; None: there is none."""
        ...

    def encode(
        self,
        text: str,
        *,
        add_bos: bool | None = None,
        parse_special: bool = True,
        limit: TokenLimit | None = None,
    ) -> list[int]:
        """Token ids of a text; ``add_bos`` None is the model's own rule."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of token ids."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Exact bytes of one token."""
        ...

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        limit: TokenLimit | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Token ids of a rendered conversation; raises TemplateError."""
        ...

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The text of a rendered conversation; raises TemplateError."""
        ...


@dataclass(frozen=True, slots=True)
class Health:
    """Whether an engine can serve.

    Attributes:
        alive: the engine runs and its last step did not hang.
        accepting: alive and not shutting down.
        dead: it will never serve again.
        step_age_s: seconds since the step in progress began; 0 when idle.
        error: what killed or hangs the engine, or None.
    """

    alive: bool
    accepting: bool
    dead: bool = False
    step_age_s: float = 0.0
    error: str | None = None


class StreamObserver(Protocol):
    """Sees every delta of every request, also of those whose reader has gone."""

    def __call__(self, stream: RequestStream, delta: Delta, now: float) -> None:
        """Called just before ``stream`` gets ``delta``, made at ``now`` (perf_counter s)."""
        ...


class EngineFacts(Protocol):
    """What stays the same of an engine while it runs."""

    @property
    def name(self) -> str:
        """Display name of the model."""
        ...

    @property
    def config(self) -> EngineConfig:
        """Options the engine runs with."""
        ...

    @property
    def max_context(self) -> int:
        """Most tokens of prompt plus answer."""
        ...

    @property
    def tokenizer(self) -> TextCodec:
        """Usable from several threads at once."""
        ...


class EngineClient(EngineFacts, Protocol):
    """An engine as the server sees it. All calls come from the event loop's thread."""

    @property
    def live(self) -> int:
        """Requests submitted and not yet ended, cancelled ones included until freed."""
        ...

    async def start(self) -> None:
        """Start the engine; the event loop that calls this gets all deltas."""
        ...

    def submit(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        reader: PromptReader | None = None,
    ) -> RequestStream:
        """Hand a request to the engine at once; its stream tells what became of it.

        A ``reader`` (``engine/run/readers.py``) looks at what is computed of the prompt, in the
        engine's thread; it may be read when the stream has ended.

        Raises:
            EngineDeadError: the engine is dead, closed or not started.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Ask for the end of a request; ids that are not live are ignored."""
        ...

    def cancel_waiting(self, request_id: str) -> None:
        """Ask for the end of a request unless the engine has begun with it."""
        ...

    def observe(self, observer: StreamObserver) -> None:
        """Call ``observer`` for each delta from now on."""
        ...

    def health(self) -> Health:
        """State of the engine now."""
        ...

    def stats(self) -> EngineStats:
        """Counters as of the last step."""
        ...

    async def close(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, let the live ones run for ``drain_s`` seconds, then stop."""
        ...
