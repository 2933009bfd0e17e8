"""Rows: which tokens are known, which logits and hidden states a step gives, and for whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from halfbyte.engine.models.rope import Rotaries
from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import Request, Sampled
from halfbyte.engine.run.rows import Rows
from halfbyte.engine.schedule.plan import RowInit, RowWork, StepPlan
from halfbyte.loaders import open_checkpoint


class Reading:
    """A reader of which only the kind matters."""

    def __init__(self, hidden: bool) -> None:
        self.hidden, self.begin = hidden, 0

    def read(self, start: int, rows_TC: torch.Tensor) -> None: ...


@pytest.fixture
def rows(tiny_hf: Path) -> Rows:
    return Rows(4, 64, 16, Rotaries(open_checkpoint(tiny_hf).config))


def admit(rows: Rows, row: int, tokens: list[int], reader: Any = None) -> Request:
    request = Request(f"r{row}", tokens, SamplingParams(), reader=reader)
    rows.admit(RowInit(row, request, tuple(tokens), ()))
    return request


def work(row: int, start: int, count: int, *, sample: bool, reads: bool = False) -> RowWork:
    return RowWork(row, f"r{row}", start, count, (), sample, 0, reads)


def plan(*items: RowWork) -> StepPlan:
    return StepPlan(1, items, (), sum(item.count for item in items), False)


def drawn(*tokens: int) -> tuple[Sampled, ...]:
    return tuple(map(Sampled, tokens))


def test_a_token_is_drawn_where_none_is_known(rows: Rows) -> None:
    admit(rows, 1, [5, 6, 7])
    assert not rows.undecided(work(1, 0, 2, sample=False))
    whole = work(1, 0, 3, sample=True)
    assert rows.undecided(whole)
    rows.write_samples(plan(whole), {"r1": drawn(8, 9, 10)})
    assert rows.tokens[1, :6].tolist() == [5, 6, 7, 8, 9, 10] and rows.known[1] == 6
    # The next step was launched when only the place of the first one was known.
    ahead = work(1, 3, 1, sample=True)
    assert not rows.undecided(ahead)
    rows.write_samples(plan(ahead), {"r1": ()})
    assert rows.tokens[1, :6].tolist() == [5, 6, 7, 8, 9, 10] and rows.known[1] == 6
    rest = work(1, 4, 2, sample=True)
    assert rows.undecided(rest)
    rows.write_samples(plan(rest), {"r1": drawn(11)})
    assert rows.known[1] == 7 and int(rows.tokens[1, 6]) == 11


def test_a_row_that_failed_has_some_token(rows: Rows) -> None:
    """Its next step may be launched already; nobody looks at what it gives."""
    admit(rows, 0, [5])
    rows.tokens[0, 1] = 99
    rows.write_samples(plan(work(0, 0, 1, sample=True)), {})
    assert rows.known[0] == 2 and int(rows.tokens[0, 1]) == 0


def test_the_next_request_of_a_row_knows_its_own_tokens_alone(rows: Rows) -> None:
    admit(rows, 2, [5, 6, 7, 8, 9])
    request = admit(rows, 2, [4, 3])
    assert rows.known[2] == 2 and rows.request(work(2, 0, 2, sample=True)) is request
    assert rows.undecided(work(2, 0, 2, sample=True))


def test_logits_and_hidden_states_of_a_step(rows: Rows) -> None:
    """Every position that logits are read of, the last of what is drawn from, hidden ones apart."""
    admit(rows, 0, [5] * 9)
    admit(rows, 1, [6] * 9, Reading(hidden=False))
    admit(rows, 2, [7] * 9, Reading(hidden=True))
    admit(rows, 3, [8] * 9, Reading(hidden=True))
    items = (
        work(0, 0, 4, sample=False),
        work(3, 6, 3, sample=True, reads=True),
        work(1, 2, 3, sample=False, reads=True),
        work(2, 0, 2, sample=False, reads=True),
    )
    step = rows.gather(plan(*items))
    assert step.sample_index is not None and step.hidden is not None
    # Tokens 0-3, 4-6, 7-9 and 10-11 of the step.
    assert step.sample_index.tolist() == [6, 7, 8, 9]
    assert step.hidden.index.tolist() == [4, 5, 6, 10, 11]
    assert [rows.logit_rows(item) for item in items] == [0, 1, 3, 0]
    assert step.token_ids.tolist() == [5] * 4 + [8] * 3 + [6] * 3 + [7] * 2
    # Past their prompts its rows are like any other.
    answering = rows.gather(plan(work(1, 9, 1, sample=True), work(0, 4, 2, sample=False)))
    assert answering.hidden is None and answering.sample_index is not None
    assert answering.sample_index.tolist() == [0]


def test_a_step_that_wants_nothing_has_no_logits(rows: Rows) -> None:
    admit(rows, 0, [5] * 9)
    step = rows.gather(plan(work(0, 0, 4, sample=False)))
    assert step.sample_index is not None and step.sample_index.numel() == 0
    assert step.hidden is None and not step.decodes
