"""Steps that are run before the engine says that it is ready, so that nothing compiles after.

A Triton kernel is compiled at the first launch with a new set of constants, which are chosen by the
number of rows and, in exact mode, by the length of the context. A dummy step for each choice,
decode and prefill, compiles all of them, and records the steps that are replayed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from ..config import EngineConfig
from ..params import SamplingParams
from .executors import row_counts, token_counts
from .model_runner import ModelRunner
from .sampling import RowSampling
from .step import StepInputs

if TYPE_CHECKING:
    from ...kernels.device.monitor import JitMonitor

log = logging.getLogger(__name__)

LEAST_LENGTH = 256
"""First context length that decode kernels are told apart by; then powers of two."""


_TEXT = torch.zeros(2, dtype=torch.int64)
_GREEDY = RowSampling(SamplingParams(temperature=0.0), 0, 2, _TEXT, 1)
_WARM = RowSampling(SamplingParams(top_k=5, top_p=0.9), 0, 2, _TEXT, 1)
_PENALIZED = RowSampling(SamplingParams(presence_penalty=1.0), 0, 2, _TEXT, 1)


def make_ready(runner: ModelRunner, config: EngineConfig, max_context: int) -> JitMonitor | None:
    """Warm up a backend that compiles its kernels, then listen for what was forgotten.

    None for other backends, and when the configuration says no.
    """
    monitor = runner.executor.monitor()
    if monitor is None or not config.warmup:
        return None
    sizes = config.max_batch, config.max_batch_tokens, max_context
    steps = warm_up(runner, *sizes, exact=config.exact)
    log.info("warmed up with %d steps", steps)
    monitor.arm()
    return monitor


def warm_up(
    runner: ModelRunner,
    max_batch: int,
    max_batch_tokens: int,
    max_context: int,
    *,
    exact: bool,
) -> int:
    """Run dummy steps of every kind on an idle engine; the number of steps.

    Only in exact mode does the length of a context choose kernels.

    They write nothing but the first KV block, which no request holds yet.
    """
    steps = 0
    for step in _steps(runner, max_batch, max_batch_tokens, max_context, exact):
        runner.sampler(runner.executor.run(step)[:1], [_GREEDY])
        steps += 1
    for kind in (_WARM, _PENALIZED):
        logits = runner.executor.run(_step(runner, [1], [0]))
        runner.sampler(logits, [kind])
    return steps


def _steps(
    runner: ModelRunner, max_batch: int, max_batch_tokens: int, max_context: int, exact: bool
) -> Iterator[StepInputs]:
    lengths = [max_context]
    while exact and lengths[-1] > LEAST_LENGTH:
        lengths.append((1 << (lengths[-1] - 1).bit_length()) // 2)
    # The largest first: smaller recordings then find room in the memory that it took.
    counts = row_counts(max_batch_tokens) if exact else token_counts(max_batch_tokens)
    for tokens in reversed(counts):
        rows, rest = divmod(tokens, max_context)
        prompts = [max_context] * rows + [rest] * (rest > 0)
        if len(prompts) <= max_batch and tokens > 1:
            yield _step(runner, prompts, [0] * len(prompts))
        if exact and 1 < len(prompts) + 1 <= max_batch and tokens < max_batch_tokens:
            # A row that decodes beside rows that prefill.
            for length in lengths:
                yield _step(runner, [*prompts, 1], [0] * len(prompts) + [length - 1])
    for rows in reversed(row_counts(max_batch)):
        for length in lengths:
            yield _step(runner, [1] * rows, [length - 1] * rows)


def _step(runner: ModelRunner, counts: Sequence[int], starts: Sequence[int]) -> StepInputs:
    """Rows with ``counts`` tokens from positions ``starts`` on, all in block 0."""
    runs = list(zip(range(len(counts)), starts, counts, strict=True))
    decode = all(count == 1 for count in counts)
    return runner.rows.step(runs, None if decode else [True] * len(runs))
