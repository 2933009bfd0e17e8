"""Engines in forked children: the same answers from one at rest, a clear refusal otherwise."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import torch

from halfbyte import Engine, SamplingParams
from halfbyte.engine.serve.async_engine import AsyncEngine

InChild = Callable[[Callable[[], str]], str]
GREEDY = SamplingParams(max_tokens=12, temperature=0)
PROMPT = [5, 17, 300, 42, 7]


@pytest.fixture(params=["auto", "cpu_torch"])
def engine(request: pytest.FixtureRequest, tiny_hf: Path) -> Engine:
    before = torch.get_num_threads()
    made = Engine(tiny_hf, backend=request.param, threads=2, kv_tokens=2048)
    # Torch's own threads are started, too.
    torch.set_num_threads(2)
    torch.randn(1 << 20).exp_()
    request.addfinalizer(lambda: torch.set_num_threads(before))
    return made


def answer(engine: Engine) -> str:
    """Tokens of an answer, and the score of the prompt."""
    (done,) = engine.generate([PROMPT], GREEDY)
    (score,) = engine.score([PROMPT * 20])
    return f"{done.finish_reason} {done.token_ids} {score}"


def test_a_child_gives_the_same_answers(engine: Engine, in_child: InChild) -> None:
    want = answer(engine)

    def child() -> str:
        # And so does a child of the child.
        return answer(engine) + "|" + in_child(lambda: answer(engine))

    for _ in range(2):
        assert in_child(child) == f"{want}|{want}"
        assert answer(engine) == want, "the parent goes on"
    engine.close()


def test_a_child_may_close_it(engine: Engine, in_child: InChild) -> None:
    want = answer(engine)
    assert in_child(lambda: str(engine.close())) == "None"
    assert answer(engine) == want
    engine.close()


def test_requests_of_the_parent_are_not_the_childs(engine: Engine, in_child: InChild) -> None:
    want = answer(engine)
    stream = engine.stream(PROMPT, GREEDY)
    next(stream)
    said = in_child(lambda: answer(engine))
    assert said.startswith("EngineDeadError") and "make the Engine in the child" in said
    assert isinstance(stream, Generator)
    stream.close()
    assert in_child(lambda: answer(engine)) == want
    engine.close()


def test_forks_while_another_thread_generates(tiny_hf: Path, in_child: InChild) -> None:
    """Whenever it happens: the right answer, or the refusal; never a hang."""
    engine = Engine(tiny_hf, threads=2, kv_tokens=2048)
    want = answer(engine)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            engine.generate([PROMPT] * 4, GREEDY)

    worker = threading.Thread(target=work)
    worker.start()
    said = [in_child(lambda: answer(engine)) for _ in range(12)]
    stop.set()
    worker.join()
    refused = [s for s in said if s.startswith("EngineDeadError: the process was forked while")]
    assert refused and all(s == want for s in said if s not in refused), said
    assert answer(engine) == want
    engine.close()


def test_an_engine_that_was_started_must_be_started_again(tiny_hf: Path, in_child: InChild) -> None:
    engine = Engine(tiny_hf, threads=2, kv_tokens=2048)

    async def main() -> str:
        served = AsyncEngine(engine)
        await served.start()
        said = in_child(lambda: str(served.submit(PROMPT, GREEDY)))
        completion = await served.submit(PROMPT, GREEDY).result()
        assert len(completion.token_ids) == 12
        await served.close()
        return said

    assert "start it in the child" in asyncio.run(main())


def test_one_that_is_started_in_the_child(tiny_hf: Path, in_child: InChild) -> None:
    """Servers that load before they fork their workers."""
    engine = Engine(tiny_hf, threads=2, kv_tokens=2048)
    (want,) = engine.generate([PROMPT], GREEDY)

    async def main() -> str:
        served = AsyncEngine(engine)
        await served.start()
        completion = await served.submit(PROMPT, GREEDY).result()
        await served.close()
        return f"{os.getpid()} {completion.token_ids}"

    said = in_child(lambda: asyncio.run(main()))
    assert said.endswith(f" {want.token_ids}") and not said.startswith(f"{os.getpid()} ")
