"""What the scheduler tells the runner: the work of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..request import Request, Sampled


@dataclass(frozen=True, slots=True)
class RowInit:
    """A request takes a row: its known tokens and the blocks that are already filled.

    Before the step, the contents of block ``copy[0]`` are copied to block ``copy[1]``, one of the
    row's new blocks. Where ``restore`` is a slot, the state in it becomes the row's.
    """

    row: int
    request: Request
    tokens: tuple[int, ...]
    blocks: tuple[int, ...]
    copy: tuple[int, int] | None = None
    restore: int = -1


@dataclass(frozen=True, slots=True)
class RowWork:
    """Positions ``start .. start + count`` of one row, which ``request_id`` has, in this step.

    ``new_blocks`` extend the row's block table before the step; ``needs_sample`` says that the
    last position's logits give the next token; ``reads`` that the request's reader takes in what
    is computed of each position, all of which are of the prompt; ``epoch`` counts the request's
    preemptions, so that a result from before one is recognised; where ``save`` is a slot, the
    row's state is put into it after the step.
    """

    row: int
    request_id: str
    start: int
    count: int
    new_blocks: tuple[int, ...]
    needs_sample: bool
    epoch: int = 0
    reads: bool = False
    save: int = -1


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step's work.

    Attributes:
        step: number of the step.
        work: positions to compute, by row.
        admitted: requests that take a row before the step.
        total_tokens: positions of ``work`` in all.
        pure_decode: every row of ``work`` computes one token, samples and has no reader.
    """

    step: int
    work: tuple[RowWork, ...]
    admitted: tuple[RowInit, ...]
    total_tokens: int
    pure_decode: bool


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave.

    Attributes:
        tokens: request id -> what was drawn for it: one token, several where a grammar leaves no
            choice, or none where the next one was known already.
        errors: request id -> what is wrong with its row; the others are not touched by it.
        seconds: how long the step took; 0 when it was not measured.
    """

    tokens: Mapping[str, Sequence[Sampled]] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


NO_PLAN = StepPlan(0, (), (), 0, False)
