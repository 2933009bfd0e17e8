"""``bench engine``: what is timed, what is counted, and the table and JSON that come out."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from halfbyte.bench import engine as bench
from halfbyte.bench.engine import BenchPlan, EngineCase, EngineRow, ModelFacts, Report, TokenSource
from halfbyte.bench.machine import known_bandwidth, machine_info, read_bandwidth, usable_cores
from halfbyte.bench.table import compact, markdown
from halfbyte.engine.engine import Engine
from halfbyte.engine.request import Completion, Delta, FinishReason, Usage
from halfbyte.errors import ConfigError, EngineDeadError, RequestError

TINY = Path(__file__).parents[1] / "fixtures" / "gguf-q4_0-spm-llama" / "model.gguf"


class ClockedEngine:
    """An engine on a clock of its own: a step costs 10 s, plus 1 s for each prompt token.

    At most ``budget`` prompt tokens are computed in a step; prompts that begin like an earlier
    one of at least 64 tokens have that part cached when ``cache`` is on.
    """

    name = "clocked"
    backend = "none"
    weight_bytes = 1000

    def __init__(self, budget: int = 1024, cache: bool = False) -> None:
        self.now = 0.0
        self.config = SimpleNamespace(max_batch_tokens=budget, threads=2)
        self.tokenizer = SimpleNamespace(vocab_size=50, special_ids=frozenset({0, 1}))
        self.model_config = SimpleNamespace(vocab_size=40)
        self.memory = SimpleNamespace(bytes_per_token=10)
        self.cache = cache
        self.prompts: list[list[int]] = []
        self._live: dict[str, SimpleNamespace] = {}
        self._cancelled: set[str] = set()

    def submit(self, prompt, params):
        known = [p for p in self.prompts if self.cache and p == prompt[: len(p)] and len(p) >= 64]
        cached = max((len(p) // 64 * 64 for p in known), default=0)
        self.prompts.append(prompt)
        name = f"r{len(self.prompts)}"
        self._live[name] = SimpleNamespace(
            length=len(prompt), cached=cached, left=len(prompt) - cached, made=0, params=params
        )
        return name

    def cancel(self, name):
        self._cancelled.add(name)

    def has_work(self):
        return bool(self._live)

    def step(self):
        self.now += 10.0
        room, deltas = self.config.max_batch_tokens, []
        for name, live in list(self._live.items()):
            if name in self._cancelled:
                deltas.append(self._end(name, FinishReason.CANCELLED))
                continue
            take = min(live.left, room)
            room, live.left, self.now = room - take, live.left - take, self.now + take
            if live.left:
                continue
            live.made += 1
            if live.made == live.params.max_tokens:
                deltas.append(self._end(name, FinishReason.LENGTH))
            else:
                deltas.append(Delta(name, "", (7,)))
        return deltas

    def _end(self, name, reason):
        live = self._live.pop(name)
        usage = Usage(live.length, live.made, live.cached)
        return Delta(name, "", (7,), Completion("", [7] * live.made, reason, usage))


@pytest.fixture
def clocked(monkeypatch):
    def make(**options):
        engine = ClockedEngine(**options)
        monkeypatch.setattr(bench.time, "perf_counter", lambda: engine.now)
        return engine

    return make


def test_prefill_counts_the_prompt_and_nothing_else(clocked):
    engine = clocked()
    ids = TokenSource(engine, 0)
    assert bench._prefill(engine, EngineCase("pp", 90, 1, 0), ids) == 90 / 100.0
    assert not engine.has_work()


def test_prefill_after_a_context_counts_what_was_computed(clocked):
    engine = clocked(cache=True)
    ids = TokenSource(engine, 0)
    # Of 100 tokens of context one block of 64 is cached: 36 + 54 tokens in 10 + 90 s.
    assert bench._prefill(engine, EngineCase("pp", 54, 1, 100), ids) == 90 / 100.0


@pytest.mark.parametrize("budget", [1024, 40])
@pytest.mark.parametrize(("batch", "depth"), [(1, 0), (8, 0), (3, 30)])
def test_decode_has_a_full_batch_and_no_prefill(clocked, budget, batch, depth):
    engine = clocked(budget=budget)
    speed = bench._decode(engine, EngineCase("tg", 20, batch, depth), TokenSource(engine, 0))
    # Ten seconds a step, one token of each sequence: any prefill inside would lower it.
    assert speed == batch / 10.0
    assert not engine.has_work()


def test_share_of_bandwidth(clocked):
    engine = clocked()
    row = bench.measure(engine, EngineCase("tg", 20, 4, 10), 3, TokenSource(engine, 0))
    row = bench.with_share(row, engine, 500.0)  # type: ignore[arg-type]
    assert row.samples == (0.4, 0.4, 0.4)
    # A step in 10 s reads 1000 bytes of weights and 4 sequences of 10 + 1 + 20 / 2 tokens.
    assert row.bandwidth_share == pytest.approx((1000 + 4 * 21 * 10) / 10 / 500.0)
    row = bench.measure(engine, EngineCase("pp", 9, 1, 0), 1, TokenSource(engine, 0))
    assert (
        row == EngineRow(EngineCase("pp", 9, 1, 0), (9 / 19,)) == bench.with_share(row, engine, 1.0)
    )


def test_a_failing_engine_is_an_error(clocked, monkeypatch):
    engine = clocked()
    monkeypatch.setattr(
        engine,
        "step",
        lambda: [engine._end(name, FinishReason.ERROR) for name in list(engine._live)],
    )
    with pytest.raises(EngineDeadError, match="failed in a benchmark"):
        bench._decode(engine, EngineCase("tg", 5, 1, 0), TokenSource(engine, 0))


def test_sequences_that_run_one_after_the_other_are_no_batch(clocked, monkeypatch):
    engine = clocked()
    step = engine.step

    def one_at_a_time():
        live = dict(engine._live)
        first = next(iter(live))
        engine._live = {first: live[first]}
        deltas = step()
        engine._live = {**engine._live, **{k: v for k, v in live.items() if k != first}}
        return deltas

    monkeypatch.setattr(engine, "step", one_at_a_time)
    with pytest.raises(ConfigError, match="did not run 2 sequences at once"):
        bench._decode(engine, EngineCase("tg", 5, 2, 0), TokenSource(engine, 0))
    assert not engine.has_work()


def test_random_prompts_hold_no_special_ids_and_differ():
    seed = random.randrange(1 << 30)
    print("seed", seed)
    engine = ClockedEngine()
    source = TokenSource(engine, seed)  # type: ignore[arg-type]
    first, second = source.draw(2000), source.draw(2000)
    assert set(first) == set(range(2, 40)) and first != second
    assert TokenSource(engine, seed).draw(2000) == first  # type: ignore[arg-type]


def test_plans():
    plan = BenchPlan((512,), (128, 64), (1, 8), (0, 4096), 3)
    assert [case.title for case in plan.tests()] == [
        *("pp512", "tg128", "tg128 b8", "tg64", "tg64 b8"),
        *("pp512 @ d4096", "tg128 @ d4096", "tg128 b8 @ d4096"),
        *("tg64 @ d4096", "tg64 b8 @ d4096"),
    ]
    assert plan.engine_options() == {
        "max_batch": 8,
        "max_batch_tokens": 1024,
        "prefix_cache": True,
    }
    assert BenchPlan().engine_options()["prefix_cache"] is False


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt": (0,)}, "prompt holds 0"),
        ({"batch": (1 << 30,)}, "batch holds"),
        ({"depth": (-1,)}, "depth holds -1"),
        ({"depth": ()}, "depth is empty"),
        ({"repetitions": 0}, "repetitions is 0"),
        ({"prompt": (), "generate": ()}, "nothing to measure"),
    ],
)
def test_bad_plans(fields, says):
    with pytest.raises(ConfigError, match=says):
        BenchPlan(**fields)


def report() -> Report:
    rows = (
        EngineRow(EngineCase("pp", 512, 1, 0), (1000.0, 1010.0)),
        EngineRow(EngineCase("tg", 128, 8, 0), (100.0, 110.0, 120.0), 0.256),
    )
    facts = ModelFacts("Name", "m.gguf", "llama", "Q4_1", 96_573_440, 134_515_008)
    return Report({"cpu": "x"}, facts, "cpu_c", 2, {}, 30e9, 1, {}, rows)


def test_tables():
    lines = markdown(report()).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == [
        *("model", "size", "params", "backend", "threads", "test", "t/s", "of bandwidth")
    ]
    assert cells[2] == [
        *("llama Q4_1", "92.10 MiB", "134.52 M", "cpu_c", "2", "pp512"),
        *("1005.00 ± 7.07", ""),
    ]
    assert cells[3][5:] == ["tg128 b8", "110.00 ± 10.00", "26%"]
    assert len({len(line) for line in lines}) == 1
    assert max(map(len, compact(report()).splitlines())) <= 80


def test_json_has_samples_and_no_paths():
    data = json.loads(json.dumps(report().to_dict()))
    assert data["schema"] == 1 and data["bandwidth_gb_s"] == 30.0
    assert data["rows"][1] == {
        "test": "tg128",
        "batch": 8,
        "depth": 0,
        "tok_s": 110.0,
        "tok_s_sd": 10.0,
        "samples": [100.0, 110.0, 120.0],
        "bandwidth_share": 0.256,
    }


def test_machine():
    info = machine_info()
    assert info["cores"] == usable_cores() >= 1 and info["cpu"] and info["halfbyte"]
    assert not any("/" in str(info[key]) for key in ("os", "python", "torch"))
    json.dumps(info)


def test_bandwidth_is_of_memory_size_and_restores_the_threads():
    import torch

    before = torch.get_num_threads()
    # Any machine that runs this reads between 0.1 and 10000 GB/s.
    assert 1e8 < read_bandwidth(1, mib=16, repeats=2) < 1e13
    assert torch.get_num_threads() == before


def test_a_real_engine_on_a_tiny_model(monkeypatch):
    bandwidths = iter([1e10, 3e10])
    monkeypatch.setattr("halfbyte.bench.machine.read_bandwidth", lambda threads: next(bandwidths))
    said: list[str] = []
    plan = BenchPlan((16,), (4,), (1, 2), (0,), 2)
    engine = Engine(TINY, backend="reference", max_context=192, **plan.engine_options())
    with engine:
        found = bench.run_bench(engine, TINY, plan, said.append)
        bandwidths = iter([1e10, 3e10])
        with pytest.raises(RequestError, match="192"):
            bench.run_bench(engine, TINY, BenchPlan((192,), (), (1,)), said.append)
    assert [row.test.title for row in found.rows] == ["pp16", "tg4", "tg4 b2"]
    for row in found.rows:
        assert len(row.samples) == 2 and all(math.isfinite(s) and s > 0 for s in row.samples)
    assert found.bandwidth == 3e10 and found.rows[0].bandwidth_share is None
    assert all(row.bandwidth_share for row in found.rows[1:])
    assert found.model.file == "model.gguf" and found.model.format == "Q4_0"
    assert found.step_bytes > 0 and str(TINY.parent) not in json.dumps(found.to_dict())
    pairs = itertools.pairwise(said)
    assert said[0].startswith("measuring") and all(a != b for a, b in pairs)


def test_bandwidth_is_measured_once(tmp_path, monkeypatch):
    rates, asked = iter([3e10, 4e10, 5e10, 6e10]), []

    def measured(threads, **options):
        asked.append(threads)
        return next(rates)

    monkeypatch.setattr("halfbyte.bench.machine.read_bandwidth", measured)
    folder = tmp_path / "cache"
    assert [known_bandwidth(folder, 2) for _ in range(3)] == [3e10] * 3
    assert known_bandwidth(folder, 4) == 4e10 and known_bandwidth(folder, 2) == 3e10
    assert known_bandwidth(folder, 2, again=True) == 5e10 == known_bandwidth(folder, 2)
    assert asked == [2, 4, 2]
    for broken in ("[]", "{", "[" * 100_000, '{"read_bandwidth": 3}', '{"read_bandwidth": {}}'):
        monkeypatch.setattr("halfbyte.bench.machine.read_bandwidth", lambda t, **o: 7e10)
        (folder / "machine.json").write_text(broken)
        assert known_bandwidth(folder, 2) == 7e10
    monkeypatch.setattr("halfbyte.bench.machine.read_bandwidth", lambda t, **o: 8e10)
    (tmp_path / "file").write_text("")
    assert known_bandwidth(tmp_path / "file", 2) == 8e10
