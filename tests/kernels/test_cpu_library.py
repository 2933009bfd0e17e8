"""The thread pool that runs programs, in a forked child too."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cpu_support import library, needs_compiler, tokens
from seeds import fresh_seed

import halfbyte.kernels.cpu.library as lib
from halfbyte.errors import ConfigError, EngineDeadError
from halfbyte.kernels.cpu.arena import ARENA_ALIGN, Arena
from halfbyte.kernels.cpu.library import Library
from halfbyte.kernels.cpu.ops import RECORDS, Add, Argmax

# As users' programs have it; conftest.py lets the threads of other tests sleep at once.
SPIN_US = lib.SPIN_US
InChild = Callable[[Callable[[], str]], str]


@pytest.fixture(autouse=True)
def spinning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lib, "SPIN_US", SPIN_US)


def argmax(made: Library, x: torch.Tensor) -> torch.Tensor:
    """A one-op program over all threads."""
    out = torch.full((len(x),), -1)
    tokens, width = x.shape
    op = Argmax(logits=x, out=out, tokens=tokens, width=width, stride=x.stride(0))
    made.run(RECORDS.pack(op)[0], 1)
    return out


@needs_compiler
@pytest.mark.parametrize("turns", [400, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_thousands_of_small_programs(threads: int, turns: int) -> None:
    """400 for each number of threads, 3000 in the long run.

    More threads than cores, too; sometimes the workers have gone to sleep before the next.
    """
    rng = random.Random(fresh_seed())
    made = Library(Path(library()._lib._name), threads)
    x = tokens(rng.getrandbits(30), 7, 40)
    want = x.argmax(-1)
    for turn in range(turns):
        assert torch.equal(argmax(made, x), want)
        if turn % 25 == 0:
            time.sleep(rng.choice([0.0, SPIN_US * 1e-6, SPIN_US * 2e-6]))
    made.close()
    made.close()


@needs_compiler
def test_an_empty_program_does_nothing() -> None:
    made = library(2)
    x = tokens(1, 3, 20)
    for _ in range(300):
        made.run(b"", 0)
        assert torch.equal(argmax(made, x), x.argmax(-1))


@needs_compiler
def test_pools_do_not_disturb_each_other() -> None:
    path = Path(library()._lib._name)
    before = len(os.listdir("/proc/self/task"))
    x = tokens(2, 5, 30)
    for _ in range(20):
        pools = [Library(path, threads) for threads in (1, 2, 3)]
        for made in pools * 5:
            assert torch.equal(argmax(made, x), x.argmax(-1))
        for made in pools:
            made.close()
    assert len(os.listdir("/proc/self/task")) <= before, "threads were left"


def test_arena_pieces_are_aligned_and_apart() -> None:
    arena = Arena()
    pieces = [arena.empty(size) for size in (1, 63, 64, 65, 1 << 20, 40 << 20, 7)]
    spans = sorted((p.data_ptr(), p.data_ptr() + p.numel()) for p in pieces)
    assert all(begin % ARENA_ALIGN == 0 for begin, _ in spans)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    for index, piece in enumerate(pieces):
        piece.fill_(index)
    assert all((piece == index).all() for index, piece in enumerate(pieces))
    copy = arena.place(torch.arange(12, dtype=torch.int32).view(3, 4).T)
    assert copy.tolist() == torch.arange(12).view(3, 4).T.tolist()


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
def test_a_forked_child_computes_with_threads_of_its_own(threads: int, in_child: InChild) -> None:
    made = Library(Path(library()._lib._name), threads)
    x = tokens(fresh_seed(), 7, 40)
    want = str(x.argmax(-1).tolist())
    assert str(argmax(made, x).tolist()) == want

    def work() -> str:
        got = {str(argmax(made, x).tolist()) for _ in range(50)}
        got.add(in_child(lambda: str(argmax(made, x).tolist())))
        made.close()
        return " ".join(got)

    for _ in range(3):
        assert in_child(work) == want
        assert str(argmax(made, x).tolist()) == want, "the parent goes on"
    made.close()


@needs_compiler
def test_a_fork_while_a_program_runs_elsewhere_is_an_error_in_the_child(in_child: InChild) -> None:
    made = Library(Path(library()._lib._name), 2)
    x = torch.zeros(600, 4000)
    tokens, width = x.shape
    sizes = {"tokens": tokens, "width": width, "x_stride": width, "y_stride": width}
    record, _ = RECORDS.pack(Add(x=x, y=x, half=False, **sizes))
    worker = threading.Thread(target=made.run, args=(record * 2000, 2000))
    worker.start()
    while not made._running:
        time.sleep(0.001)
    said = in_child(lambda: str(argmax(made, x)))
    assert made._running, "the fork came in time"
    worker.join()
    assert said.startswith("EngineDeadError") and "make the Engine in the child" in said
    assert argmax(made, x[:2]).tolist() == [0, 0]
    made.close()


@needs_compiler
def test_threads_that_cannot_be_started_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Library(Path(library()._lib._name), 2)
    made.close()
    with monkeypatch.context() as patch:
        patch.setattr(made, "_lib", SimpleNamespace(hb_pool_new=lambda threads: None))
        with pytest.raises(ConfigError, match=r"2 threads cannot be started.*--threads"):
            made._start()
    with pytest.raises(EngineDeadError, match="closed"):
        made.run(b"", 0)
