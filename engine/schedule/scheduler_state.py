"""What the scheduler knows of a request, and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..request import FinishReason, Request
from .block_pool import Prefix


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of a step.

    Attributes:
        max_batch: most requests running at once.
        max_batch_tokens: most tokens computed in one step.
        max_context: most tokens, prompt plus answer, of one request.
        prefix_cache: look up and publish shared beginnings.
        max_step_s: seconds that a step may take by prediction while a row decodes; a prompt's
            chunk is cut to fit, but never to nothing. 0 is no bound.
    """

    max_batch: int
    max_batch_tokens: int
    max_context: int
    prefix_cache: bool = True
    max_step_s: float = 0.0


@dataclass(slots=True)
class RequestState:
    """A request inside the scheduler: ``computed`` positions are launched, ``done`` committed.

    Attributes:
        request: what was asked for.
        arrival: its number in the order of submission.
        tokens: the text so far, prompt and answer.
        row: the row of the batch that it holds, or -1.
        computed: positions whose computation has been launched.
        done: positions whose results have been committed.
        in_flight: samples that are launched and not committed.
        promised: length of the text with the last token that is or was in flight.
        lent: blocks with what is computed of its prompt, which another request lent it while it
            waits; all but the last are full.
        epoch: how often it was preempted.
        cached: prompt tokens that the prefix cache supplied at first admission.
        blocks: its KV blocks in order.
        prefixes: the text up to the end of each published block.
        finish: why it ended, or None.
        first_step: the first step that computed for it, or -1.
    """

    request: Request
    arrival: int
    tokens: list[int]
    row: int = -1
    computed: int = 0
    done: int = 0
    in_flight: int = 0
    promised: int = 0
    lent: list[int] = field(default_factory=list)
    epoch: int = 0
    cached: int = 0
    blocks: list[int] = field(default_factory=list)
    prefixes: list[Prefix] = field(default_factory=list)
    finish: FinishReason | None = None
    first_step: int = -1

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def known(self) -> int:
        """Length of the text that the device knows, or will when the step in flight is over."""
        return max(len(self.tokens), self.promised)

    @property
    def reads(self) -> bool:
        """Whether a reader waits for the next position to be computed."""
        reader = self.request.reader
        return reader is not None and reader.begin <= self.computed < len(self.request.prompt)

    @property
    def extra_key(self) -> bytes:
        """What separates its prefix-cache entries from those of other tenants."""
        return self.request.cache_salt.encode("utf-8", "surrogatepass")

    @property
    def urgency(self) -> tuple[int, int]:
        """Smaller is more urgent."""
        return self.request.priority, self.arrival
