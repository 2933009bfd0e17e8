"""Engine speed: prefill and decode tokens per second, measured through ``Engine.step``.

The tests have the names that llama-bench gave them: ``pp512`` computes a prompt of 512 tokens,
``tg128`` generates 128 tokens; ``@ d4096`` means after 4096 tokens of context. Prompts are
random ids drawn afresh for every sample, end-of-text is ignored, sampling is greedy. The clock
of ``tg`` starts when every sequence of the batch has its first token and stops when every one has
128 more, so prefill is never in it and the batch is full all along.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from halfbyte.errors import ConfigError, EngineDeadError

from ..engine.params import SamplingParams

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.request import Completion

_SCHEMA = 1
_WARM_UP_TOKENS = 16
_MOST = 1 << 20

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What to measure. Checked on construction.

    Attributes:
        prompt: prompt lengths of the prefill tests, in tokens.
        generate: lengths of the decode tests, in tokens.
        batch: batch sizes of the decode tests; prefill runs at batch 1.
        depth: tokens of context before each test.
        repetitions: samples of each test.
        seed: of the random token ids.

    Raises:
        ConfigError: a number is outside its range, or there is nothing to measure.
    """

    prompt: tuple[int, ...] = (512,)
    generate: tuple[int, ...] = (128,)
    batch: tuple[int, ...] = (1,)
    depth: tuple[int, ...] = (0,)
    repetitions: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("prompt", 1), ("generate", 1), ("batch", 1), ("depth", 0)):
            for value in getattr(self, name):
                if not low <= value <= _MOST:
                    raise ConfigError(f"{name} holds {value}; expected {low} to {_MOST}")
        if not 1 <= self.repetitions <= 10_000:
            raise ConfigError(f"repetitions is {self.repetitions}; expected 1 to 10000")
        if not self.prompt and not (self.generate and self.batch):
            raise ConfigError("there is nothing to measure", hint="give prompt or generate")
        if not self.depth:
            raise ConfigError("depth is empty", hint="give 0 for no context")

    def tests(self) -> list[EngineCase]:
        """All tests in the order they run."""
        tests = []
        for depth in self.depth:
            tests += [EngineCase("pp", n, 1, depth) for n in self.prompt]
            tests += [EngineCase("tg", n, b, depth) for n in self.generate for b in self.batch]
        return tests

    def engine_options(self) -> dict[str, Any]:
        """Options that the engine needs for these tests.

        The prefix cache is off, except that it holds the context of tests with a depth.
        """
        return {
            "max_batch": max((1, *self.batch)),
            "max_batch_tokens": max((1024, *self.batch)),
            "prefix_cache": any(self.depth),
        }


@dataclass(frozen=True, slots=True)
class EngineCase:
    """One line of the table: kind, tokens, batch (sequences), depth (tokens of context before)."""

    kind: Literal["pp", "tg"]
    tokens: int
    batch: int
    depth: int

    @property
    def name(self) -> str:
        """llama-bench's name, without the batch."""
        return f"{self.kind}{self.tokens}" + (f" @ d{self.depth}" if self.depth else "")

    @property
    def title(self) -> str:
        """The name with the batch when there is more than one sequence."""
        head = f"{self.kind}{self.tokens}" + (f" b{self.batch}" if self.batch > 1 else "")
        return head + (f" @ d{self.depth}" if self.depth else "")


@dataclass(frozen=True, slots=True)
class EngineRow:
    """Result of one test.

    Attributes:
        test: see :class:`EngineCase`.
        samples: tokens per second of each repetition, all sequences together.
        bandwidth_share: for decode, bytes that a step must read (weights and KV) per second over
            the measured read bandwidth; None for prefill.
    """

    test: EngineCase
    samples: tuple[float, ...]
    bandwidth_share: float | None = None

    @property
    def mean(self) -> float:
        """Mean tokens per second."""
        return statistics.fmean(self.samples)

    @property
    def sd(self) -> float:
        """Sample standard deviation of the tokens per second; 0 for one sample."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "test": self.test.name,
            "batch": self.test.batch,
            "depth": self.test.depth,
            "tok_s": self.mean,
            "tok_s_sd": self.sd,
            "samples": list(self.samples),
            "bandwidth_share": self.bandwidth_share,
        }


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the table says about the model.

    Attributes:
        name: display name.
        file: name of the file or folder, without its path.
        architecture: family.
        format: tensor format that holds most weights.
        size: bytes of all tensors in the file.
        params: number of weights.
    """

    name: str
    file: str
    architecture: str
    format: str
    size: int
    params: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run of ``bench engine`` found.

    Attributes:
        machine: see :func:`halfbyte.bench.machine.machine_info`.
        model: the model's facts.
        backend: what computed.
        threads: CPU threads.
        flags: plan and engine options.
        bandwidth: measured read bandwidth, bytes per second.
        step_bytes: weight bytes that one decode step reads.
        startup: seconds of each phase of the engine's start.
        rows: results.
    """

    machine: dict[str, Any]
    model: ModelFacts
    backend: str
    threads: int
    flags: dict[str, Any]
    bandwidth: float
    step_bytes: int
    startup: dict[str, float] = field(default_factory=dict)
    rows: tuple[EngineRow, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; bandwidth in 1e9 bytes per second."""
        return {
            "schema": _SCHEMA,
            "kind": "engine",
            "machine": self.machine,
            "model": asdict(self.model),
            "backend": self.backend,
            "threads": self.threads,
            "flags": self.flags,
            "bandwidth_gb_s": self.bandwidth / 1e9,
            "weight_bytes_per_step": self.step_bytes,
            "startup_s": self.startup,
            "rows": [row.to_dict() for row in self.rows],
        }


def run_bench(engine: Engine, model: Path, plan: BenchPlan, say: Say) -> Report:
    """Run all tests of a plan on an engine made with the plan's ``engine_options``.

    Args:
        engine: idle; nothing else may use it meanwhile.
        model: file or folder that the engine was loaded from, for sizes.
        plan: tests.
        say: takes one line before each test.

    Raises:
        RequestError: a test does not fit into the context.
        ConfigError: the KV cache is too small for a batch.
        EngineDeadError: the engine failed during a test.
    """
    import torch

    from .machine import machine_info, read_bandwidth

    threads = engine.config.threads or torch.get_num_threads()
    say(f"measuring read bandwidth with {threads} threads")
    before = read_bandwidth(threads)
    ids = TokenSource(engine, plan.seed)
    rows = []
    for test in plan.tests():
        say(f"{test.title}: warm-up and {plan.repetitions} samples")
        rows.append(measure(engine, test, plan.repetitions, ids))
    # Other work on the machine can only lower a measurement: the better of two is nearer.
    bandwidth = max(before, read_bandwidth(threads))
    return Report(
        machine=machine_info(),
        model=model_facts(engine, model),
        backend=engine.backend,
        threads=threads,
        flags={"plan": asdict(plan), "engine": asdict(engine.config), "temperature": 0.0},
        bandwidth=bandwidth,
        step_bytes=engine.weight_bytes,
        startup=dict(engine.startup),
        rows=tuple(with_share(row, engine, bandwidth) for row in rows),
    )


class TokenSource:
    """Random prompts of ordinary tokens: no two alike, none with a special id."""

    __slots__ = ("_ids", "_random")

    def __init__(self, engine: Engine, seed: int) -> None:
        known = min(engine.tokenizer.vocab_size, engine.model_config.vocab_size)
        special = engine.tokenizer.special_ids
        self._ids = [i for i in range(known) if i not in special] or [0]
        self._random = random.Random(seed)

    def draw(self, count: int) -> list[int]:
        """``count`` token ids."""
        return self._random.choices(self._ids, k=count)


def measure(engine: Engine, test: EngineCase, repetitions: int, ids: TokenSource) -> EngineRow:
    """Warm up, then take the samples of one test."""
    warm_up(engine, test, ids)
    return EngineRow(test, tuple(sample(engine, test, ids) for _ in range(repetitions)))


def warm_up(engine: Engine, test: EngineCase, ids: TokenSource) -> None:
    """Run a test once, a decode test for a few tokens only."""
    short = test if test.kind == "pp" else replace(test, tokens=min(test.tokens, _WARM_UP_TOKENS))
    sample(engine, short, ids)


def sample(engine: Engine, test: EngineCase, ids: TokenSource) -> float:
    """Run a test once on an idle engine -> tokens per second. Raises as ``run_bench`` does."""
    return (_prefill if test.kind == "pp" else _decode)(engine, test, ids)


def with_share(row: EngineRow, engine: Engine, bandwidth: float) -> EngineRow:
    """A decode row with its share of ``bandwidth`` (bytes per second); a prefill row as it is."""
    test = row.test
    if test.kind == "pp":
        return row
    context = max(test.depth, 1) + 1 + test.tokens / 2
    step_bytes = engine.weight_bytes + test.batch * context * engine.memory.bytes_per_token
    return replace(row, bandwidth_share=step_bytes * row.mean / test.batch / bandwidth)


def _prefill(engine: Engine, test: EngineCase, ids: TokenSource) -> float:
    """Prompt tokens per second, up to and with the sampling of one token."""
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    before = ids.draw(test.depth)
    if before:
        _finish(engine, [engine.submit(before, params)])
    name = engine.submit([*before, *ids.draw(test.tokens)], params)
    start = time.perf_counter()
    done = _finish(engine, [name])
    elapsed = time.perf_counter() - start
    usage = done[name].usage
    # With a depth, whole blocks of the context come from the prefix cache and the rest of it
    # is computed again: count what was computed.
    return (usage.prompt_tokens - usage.cached_tokens) / elapsed


def _decode(engine: Engine, test: EngineCase, ids: TokenSource) -> float:
    """Generated tokens per second of all sequences, without prefill and with a full batch."""
    length = max(test.depth, 1)
    budget = engine.config.max_batch_tokens
    # Prompts that do not fit into one step start at different steps; the earlier ones must
    # not run out before the last has its tokens.
    spread = -(-length * test.batch // budget) + test.batch
    params = SamplingParams(temperature=0.0, max_tokens=1 + test.tokens + spread, ignore_eos=True)
    counts = {engine.submit(ids.draw(length), params): 0 for _ in range(test.batch)}
    try:
        while min(counts.values()) < 1:
            _count(engine, counts)
        goal = {name: count + test.tokens for name, count in counts.items()}
        begun = sum(counts.values())
        start = time.perf_counter()
        while any(counts[name] < goal[name] for name in counts):
            _count(engine, counts)
        elapsed = time.perf_counter() - start
        return (sum(counts.values()) - begun) / elapsed
    finally:
        for name in counts:
            engine.cancel(name)
        while engine.has_work():
            engine.step()


def _count(engine: Engine, counts: dict[str, int]) -> None:
    """One step; adds the new tokens of each sequence.

    Raises EngineDeadError on a failure, ConfigError when a sequence ended before its time.
    """
    for delta in engine.step():
        counts[delta.request_id] += len(delta.token_ids)
        if delta.completion is not None:
            _check(delta.completion)
            # Each may make more tokens than are timed, so it ran while another one waited.
            raise ConfigError(
                f"the engine did not run {len(counts)} sequences at once",
                hint="lower --batch or --depth: the KV cache cannot hold them all",
            )


def _finish(engine: Engine, names: list[str]) -> dict[str, Completion]:
    """Step until all requests are done. Raises EngineDeadError when one failed."""
    done: dict[str, Completion] = {}
    while len(done) < len(names):
        for delta in engine.step():
            if delta.completion is not None:
                _check(delta.completion)
                done[delta.request_id] = delta.completion
    return done


def _check(completion: Completion) -> None:
    if completion.finish_reason.value == "error":
        raise EngineDeadError(f"the engine failed in a benchmark: {completion.error}")


def model_facts(engine: Engine, path: Path) -> ModelFacts:
    """Facts of the model that an engine runs."""
    return replace(file_facts(path, engine.config.quantize), name=engine.name)


def file_facts(path: Path, quantize: str | None = None) -> ModelFacts:
    """Sizes and formats from the checkpoint's headers.

    Args:
        path: file or folder.
        quantize: scheme to which the layers are rounded while they are loaded, or None.
    """
    from ..loaders import open_checkpoint

    checkpoint = open_checkpoint(path)
    try:
        tensors, config = checkpoint.tensors(), checkpoint.config
    finally:
        checkpoint.close()
    weights: dict[str, int] = {}
    for info in tensors:
        weights[info.label] = weights.get(info.label, 0) + math.prod(info.shape)
    label = max(weights, key=lambda label: weights[label], default="?")
    return ModelFacts(
        name=config.name,
        file=path.name,
        architecture=config.architecture,
        format=f"{label} as {quantize}" if quantize else label,
        size=sum(info.nbytes for info in tensors),
        params=sum(weights.values()),
    )
