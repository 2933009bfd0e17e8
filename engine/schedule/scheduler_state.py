"""What the scheduler knows of a request, and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..request import FinishReason, Request
from .block_pool import Prefix
from .plan import RowWork


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

    def pending(self, max_context: int) -> int:
        """Tokens known (or in flight, hence known to the device) and not yet computed."""
        limit, known = self.request.params.max_tokens, self.known
        ends = known >= max_context
        if limit is not None:
            ends |= known - len(self.request.prompt) >= limit
        return 0 if ends and self.in_flight else known - self.computed

    def piece(self, index: int, size: int) -> tuple[int, ...]:
        """The tokens of its block ``index``, of ``size`` tokens."""
        return tuple(self.tokens[index * size : (index + 1) * size])

    def end_by(
        self, token: int, end_tokens: frozenset[int], max_context: int
    ) -> FinishReason | None:
        """Why its text ends with a token that was appended, or None."""
        params = self.request.params
        # Before ``min_tokens`` the sampler draws none of them, unless nothing else is left.
        ended = token in end_tokens and not params.ignore_eos
        if ended or token in params.stop_token_ids:
            return FinishReason.STOP
        full = params.max_tokens is not None and self.generated >= params.max_tokens
        return FinishReason.LENGTH if full or len(self.tokens) >= max_context else None

    @property
    def reads_logits(self) -> bool:
        """Whether a reader wants the logits of the prompt."""
        reader = self.request.reader
        return reader is not None and not reader.hidden

    @property
    def next_token(self) -> RowWork:
        """The work of its row when it decodes."""
        return RowWork(self.row, self.request.id, self.computed, 1, (), True)

    @property
    def extra_key(self) -> bytes:
        """What separates its prefix-cache entries from those of other tenants."""
        return self.request.cache_salt.encode("utf-8", "surrogatepass")

    @property
    def urgency(self) -> tuple[int, int]:
        """Smaller is more urgent."""
        return self.request.priority, self.arrival
