"""Threads get their turns in order, alone, and none is lost."""

from __future__ import annotations

import threading
import time

import pytest

from halfbyte.engine.serve.turns import Turns


def test_one_at_a_time_and_nobody_starves() -> None:
    turns, inside, taken = Turns(), [0], {name: 0 for name in range(4)}
    stop = threading.Event()

    def work(name: int) -> None:
        while not stop.is_set():
            with turns:
                inside[0] += 1
                assert inside[0] == 1
                taken[name] += 1
                time.sleep(0.0005)
                inside[0] -= 1

    threads = [threading.Thread(target=work, args=(name,)) for name in taken]
    for thread in threads:
        thread.start()
    while min(taken.values()) < 20 and max(taken.values()) < 2000:
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join(10)
    # In turn means that no thread is more than a few turns ahead of another.
    assert min(taken.values()) >= 20 and max(taken.values()) - min(taken.values()) < 20


def test_in_the_order_of_asking() -> None:
    turns, order = Turns(), []

    def work(name: int) -> None:
        with turns:
            order.append(name)

    with turns:
        threads = []
        for name in range(5):
            threads.append(threading.Thread(target=work, args=(name,)))
            threads[-1].start()
            while len(turns._waiting) <= name:
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert order == list(range(5))


def test_a_thread_that_asks_twice_is_told() -> None:
    turns = Turns()
    assert not turns.mine
    with turns:
        assert turns.mine
        with pytest.raises(RuntimeError, match="already"), turns:
            pass
        assert turns.mine
    assert not turns.mine
    with turns:
        pass


def test_a_turn_lost_to_an_interrupt_is_taken_back() -> None:
    turns = Turns()

    def interrupted() -> None:
        turns.__enter__()  # and the exit never runs

    interrupted()
    assert not turns.mine
    with turns:
        assert turns.mine


def test_an_interrupt_while_waiting_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, caught = Turns(), []

    class Interrupted:
        def __init__(self) -> None:
            self.calls = 0

        def acquire(self) -> None:
            self.calls += 1
            if self.calls == 2:
                raise KeyboardInterrupt

        def release(self) -> None:
            pass

    def work() -> None:
        monkeypatch.setattr("halfbyte.engine.serve.turns.threading.Lock", Interrupted)
        try:
            with turns:
                pass
        except KeyboardInterrupt:
            caught.append(True)

    with turns:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
        monkeypatch.undo()
        assert caught and not turns._waiting
    with turns:
        pass
