"""Runs of an engine with every logit noted, to compare two runs bit by bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfbyte import Completion, Engine, SamplingParams
from halfbyte.engine.run.model_runner import Forward
from halfbyte.engine.schedule.plan import StepResult

# Around one and two blocks of 64 tokens; 0 stands for any length.
LENGTHS = (0, 1, 17, 64, 65, 127, 128, 129)
# Prompts that come before those.
EARLY = 4


@dataclass
class Run:
    """Tokens of each prompt, and the logits from which each of them was drawn."""

    tokens: list[list[int]]
    logits: list[Tensor]
    preemptions: int = 0
    cached: int = 0


@dataclass
class Work:
    """Prompts of token ids with their sampling parameters."""

    prompts: list[list[int]] = field(default_factory=list)
    params: list[SamplingParams] = field(default_factory=list)

    def part(self, count: int) -> Work:
        return Work(self.prompts[:count], self.params[:count])


def random_work(seed: int, count: int, *, vocab: int, longest: int = 200, tokens: int = 12) -> Work:
    """Prompts of 1 to ``longest`` tokens, many with common beginnings; greedy and sampled.

    Each length of ``LENGTHS`` is there in every eight prompts, in any order, and four of 41 to 48
    tokens come before them all: what a run must meet (memory that does not suffice, blocks that are
    found again) follows for every seed. The four run side by side, in three blocks of 16 each, and
    grow into four, which 224 tokens do not hold.
    """
    rng = random.Random(seed)
    lengths = [n for _ in range(0, count, 8) for n in rng.sample(LENGTHS, 8)]
    lengths = [n or rng.randint(1, longest) for n in lengths]
    lengths = [*(rng.randint(41, 48) for _ in range(EARLY)), *lengths]
    count += EARLY
    stems = [[rng.randrange(3, vocab) for _ in range(longest)] for _ in range(2)]
    work = Work()
    for index in range(count):
        length = lengths[index]
        shared = rng.randint(0, length) if rng.random() < 0.6 else 0
        own = [rng.randrange(3, vocab) for _ in range(length - shared)]
        work.prompts.append(rng.choice(stems)[:shared] + own)
        warm = index % 2 == 1
        work.params.append(
            SamplingParams(
                temperature=rng.choice([0.7, 1.3]) if warm else 0.0,
                top_k=rng.choice([0, 40]),
                top_p=rng.choice([1.0, 0.9]),
                min_p=rng.choice([0.0, 0.02]),
                repetition_penalty=rng.choice([1.0, 1.1]),
                presence_penalty=rng.choice([0.0, 0.4]),
                seed=rng.getrandbits(62),
                max_tokens=tokens,
                ignore_eos=True,
            )
        )
    return work


def short_work(seed: int) -> Work:
    """Eight prompts of at most 40 tokens: ends of longer ones, which no two of them share.

    Two of 40 come first, so that they run side by side.
    """
    work = random_work(seed, 8, vocab=600, longest=150, tokens=16)
    del work.prompts[:EARLY], work.params[:EARLY]
    prompts = [prompt[-40:] for prompt in work.prompts]
    first = [i for i, prompt in enumerate(prompts) if len(prompt) == 40][:2]
    work.prompts = [prompts[i] for i in sorted(range(8), key=lambda i: i not in first)]
    return work


def run(
    model: Path,
    work: Work,
    *,
    order: list[int] | None = None,
    alone: bool = False,
    arrivals: int = 0,
    turns: int = 1,
    **options: Any,
) -> Run:
    """Answer all prompts and note the logits.

    ``order`` is the order of submission, ``alone`` answers one prompt at a time, ``arrivals``
    submits one prompt every so many steps, ``turns`` repeats everything with a filled prefix
    cache and returns the last turn.
    """
    with Engine(model, exact=True, **options) as engine:
        seen: dict[tuple[str, int], Tensor] = {}
        real = engine._loop.runner.draw

        def note(forward: Forward, late: bool = False) -> Callable[[], StepResult]:
            drawn = [w for w in forward.plan.work if w.needs_sample]
            for item, row in zip(drawn, forward.logits, strict=True):
                seen[item.request_id, item.start + item.count] = row.float().clone()
            return real(forward, late)

        engine._loop.runner.draw = note  # type: ignore[method-assign]
        ends: dict[str, Completion] = {}
        for _ in range(turns):
            ends.clear()
            seen.clear()
            for index in order or range(len(work.prompts)):
                engine.submit(work.prompts[index], work.params[index], request_id=str(index))
                for _ in range(10_000 if alone else arrivals):
                    if not engine.has_work():
                        break
                    _step(engine, ends)
            while engine.has_work():
                _step(engine, ends)
        tokens, logits = [], []
        for index, prompt in enumerate(work.prompts):
            done = ends[str(index)]
            assert done.error is None, done.error
            tokens.append(done.token_ids)
            begin = len(prompt)
            rows = [seen[str(index), begin + i] for i in range(len(done.token_ids))]
            logits.append(torch.stack(rows))
        cached = sum(done.usage.cached_tokens for done in ends.values())
        return Run(tokens, logits, engine.stats().preemptions, cached)


def _step(engine: Engine, ends: dict[str, Completion]) -> None:
    for delta in engine.step():
        if delta.completion is not None:
            ends[delta.request_id] = delta.completion


def assert_same_bits(got: Run, want: Run) -> None:
    for index, (tokens, wanted) in enumerate(zip(got.tokens, want.tokens, strict=True)):
        assert tokens == wanted, f"prompt {index}: other tokens"
    for index, (a, b) in enumerate(zip(got.logits, want.logits, strict=True)):
        bits = a.view(torch.int32) == b.view(torch.int32)
        assert bits.all(), f"prompt {index}: logits of {int((~bits).any(-1).sum())} tokens differ"
