"""A ctrl-C at the worst moments: between the lines of a step, a submission, a cancellation."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from halfbyte import Engine, SamplingParams
from halfbyte.engine.serve.interrupts import uninterrupted

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
TEXTS = ["The quick", "Once upon", "x"]


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Python's own handler, whatever the runner of the tests has set."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("place", ["schedule", "commit", "add"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_ctrl_c_behind_any_change_leaks_nothing(
    monkeypatch: pytest.MonkeyPatch, tiny_hf: Path, overlap: bool, place: str, streamed: bool
) -> None:
    engine = Engine(tiny_hf, max_batch=3, overlap=overlap)
    scheduler = engine._loop.scheduler
    real: Callable[..., Any] = getattr(scheduler, place)
    armed = False

    def call(*arguments: Any) -> Any:
        nonlocal armed
        out = real(*arguments)
        if armed:
            armed = False
            signal.raise_signal(signal.SIGINT)
        return out

    monkeypatch.setattr(scheduler, place, call)
    for _ in range(2):
        armed = True
        with pytest.raises(KeyboardInterrupt):
            if streamed:
                list(engine.stream(TEXTS[0], GREEDY))
            else:
                engine.generate(TEXTS, GREEDY)
    scheduler.check()
    assert not engine.has_work() and engine.stats().kv_blocks_used == 0
    assert [len(done.token_ids) for done in engine.generate(TEXTS, GREEDY)] == [6, 6, 6]


def test_the_first_waits_and_the_second_does_not() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append("the block")
    assert done == ["the block"]
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append("never")
    assert done == ["the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_counts_sees_each() -> None:
    seen: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    with uninterrupted():
        signal.raise_signal(signal.SIGINT)
        assert seen == []
        signal.raise_signal(signal.SIGINT)
        assert len(seen) == 2
        signal.raise_signal(signal.SIGINT)
    assert len(seen) == 3


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with uninterrupted():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
