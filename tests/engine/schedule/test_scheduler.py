"""Scheduler: thousands of random schedules over simulated KV memory, and each policy alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from random_schedules import random_choices, random_runs
from seeds import fresh_seed
from simulated_kv import END, Failure, Simulation, alone, next_token

import halfbyte.engine.schedule.block_pool as block_pool_module
from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import FinishReason, Request
from halfbyte.engine.schedule.block_pool import block_hash
from halfbyte.engine.schedule.scheduler_state import SchedulerConfig


def simulation(
    *, size: int = 4, blocks: int = 16, batch: int = 4, budget: int = 64, context: int = 64, **more
) -> Simulation:
    overlap = more.pop("overlap", False)
    return Simulation(size, blocks, SchedulerConfig(batch, budget, context, **more), overlap)


def request(name: str, prompt: list[int], most: int = 5, **more) -> Request:
    """A request that nothing but its length ends."""
    params = SamplingParams(max_tokens=most, ignore_eos=True)
    return Request(name, prompt, params, **more)


def test_random_schedules_answer_like_each_prompt_alone() -> None:
    met = random_runs(700)
    # The run must have met what it is about.
    assert met.steps > 7000 and met.preemptions > 130
    assert met.forced > 900 and met.nothing_drawn > 450
    assert met.waited > 450 and met.read_again > 5


@pytest.mark.slow
def test_random_schedules_long() -> None:
    random_runs(150_000)
    random_runs(50_000, states=True)


@pytest.mark.parametrize("kinds", [1, 2, 7])
def test_hash_collisions_never_share_wrong_blocks(
    monkeypatch: pytest.MonkeyPatch, kinds: int
) -> None:
    """With 1, 2 or 7 hash values in all, nearly every look-up meets another text's entry."""
    monkeypatch.setattr(
        block_pool_module, "block_hash", lambda *a: bytes([block_hash(*a)[0] % kinds])
    )
    random_runs(300)


class Schedules(RuleBasedStateMachine):
    """Hypothesis picks every move, so a failing schedule is shrunk to a short one."""

    @initialize(seed=st.integers(0, 1 << 32), overlap=st.booleans(), cache=st.booleans())
    def start(self, seed: int, overlap: bool, cache: bool) -> None:
        rng = random.Random(seed)
        size, context = rng.choice([1, 2, 4]), rng.randint(3, 24)
        batch = rng.randint(1, 4)
        config = SchedulerConfig(batch, max(batch, rng.randint(1, 12)), context, cache)
        blocks = -(-context // size) + rng.randint(0, 3)
        self.sim = Simulation(size, blocks, config, overlap)

    @rule(seed=st.integers(0, 1 << 32))
    def add(self, seed: int) -> None:
        name = f"r{len(self.sim.requests)}"
        for one in random_choices(random.Random(seed), name, self.sim.config.max_context):
            self.sim.add(one)

    @rule(fail=st.sampled_from([None, None, None, "early", "late"]))
    def step(self, fail: Failure) -> None:
        self.sim.step(fail)

    @precondition(lambda self: self.sim.live)
    @rule(which=st.integers(0, 1 << 16), silently=st.booleans())
    def end_one(self, which: int, silently: bool) -> None:
        name = self.sim.live[which % len(self.sim.live)]
        self.sim.end_silently(name) if silently else self.sim.cancel(name)

    def teardown(self) -> None:
        if hasattr(self, "sim"):
            self.sim.drain()
            self.sim.verify()


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(
    max_examples=70,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize("overlap", [False, True])
def test_full_prompt_hit_still_computes_a_token(overlap: bool) -> None:
    """A prompt of whole blocks, all cached: its last block is computed for its logits."""
    sim = simulation(size=4, overlap=overlap)
    prompt = [1, 2, 3, 1, 2, 3, 1, 2]
    sim.add(request("first", prompt, 1))
    sim.drain()
    sim.add(request("second", prompt, 3))
    plan = sim.step()
    (work,) = plan.work
    assert (work.start, work.count, work.needs_sample) == (4, 4, True)
    assert sim.scheduler.cached_tokens("second") == 4
    sim.drain()
    sim.verify()


def test_generated_tokens_are_cached_too() -> None:
    sim = simulation(size=4)
    sim.add(request("first", [1, 2], 10))
    sim.drain()
    text = [1, 2, *sim.outputs["first"]]
    sim.add(request("second", text, 3))
    sim.step()
    # 12 tokens known, the last one never computed: two whole blocks.
    assert sim.scheduler.cached_tokens("second") == 8
    sim.drain()
    sim.verify()


def test_prefix_cache_off_shares_nothing() -> None:
    sim = simulation(size=4, prefix_cache=False)
    for name in ("first", "second"):
        sim.add(request(name, [1] * 12, 1))
        plan = sim.step()
        assert sum(w.count for w in plan.work) == 12
    sim.drain()
    sim.verify()


@pytest.mark.parametrize(
    "salts",
    [
        ("", "a", "b"),
        # Long names with a common beginning, and one that UTF-8 cannot hold.
        ("x" * 64, "x" * 65, "x" * 64 + "y", "x" * 200, "\ud800"),
    ],
)
def test_cache_salt_separates(salts: tuple[str, ...]) -> None:
    sim = simulation(size=4)
    for turn in ("cold", "warm"):
        for index, salt in enumerate(salts):
            name = f"{turn}{index}"
            sim.add(request(name, [1, 2, 3] * 4, 1, cache_salt=salt))
            sim.step()
            cached = 8 if turn == "warm" else 0
            assert sim.outputs[name], "one step answers a short prompt"
            assert sum(w.count for w in sim.plans[-1].work) == 12 - cached, (turn, salt)
    sim.drain()
    sim.verify()


def test_preempted_request_answers_the_same() -> None:
    """Two texts that outgrow the pool: the later one is put back and recomputed."""
    sim = simulation(size=2, blocks=10, batch=2, budget=8, context=20)
    sim.add(request("old", [1] * 6, 13))
    sim.add(request("new", [2] * 6, 13))
    sim.drain()
    assert sim.scheduler.preemptions > 0
    sim.verify()
    for name in ("old", "new"):
        assert sim.outputs[name] == alone(sim.requests[name], 20)[0]


def test_victim_is_the_newest_of_the_lowest_priority() -> None:
    sim = simulation(size=1, blocks=12, batch=3, budget=12, context=12, prefix_cache=False)
    sim.add(request("low", [1] * 3, 9, priority=1))
    sim.add(request("high", [2] * 3, 9, priority=0))
    sim.step()
    assert {w.request_id for w in sim.plans[-1].work} == {"low", "high"}
    while not sim.scheduler.preemptions:
        sim.step()
    assert [w.request_id for w in sim.plans[-1].work] == ["high"]
    sim.drain()
    sim.verify()


def test_waiting_requests_start_by_priority_then_arrival() -> None:
    sim = simulation(batch=1)
    for name, priority in (("a", 0), ("b", 1), ("c", -1), ("d", 0)):
        sim.add(request(name, [1], 1, priority=priority))
    order: list[str] = []
    while sim.has_work():
        order += [init.request.id for init in sim.step().admitted]
    assert order == ["c", "a", "d", "b"]


def test_decoding_rows_go_before_a_long_prompt() -> None:
    """Chunked prefill takes what the running texts leave of the budget."""
    sim = simulation(size=4, blocks=64, batch=4, budget=8, context=64)
    for name in ("a", "b"):
        sim.add(request(name, [1, 2], 30))
    sim.step()
    sim.add(request("long", [3] * 40, 4))
    for _ in range(6):
        work = {w.request_id: w for w in sim.step().work}
        assert work["a"].count == work["b"].count == 1 and work["long"].count == 6
        assert not work["long"].needs_sample
    assert {w.request_id: w.count for w in sim.step().work}["long"] == 4
    sim.drain()
    sim.verify()


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("when", ["waiting", "prefill", "decode"])
def test_cancel_reports_once_and_frees_everything(overlap: bool, when: str) -> None:
    sim = simulation(size=4, blocks=32, batch=1, budget=4, overlap=overlap)
    sim.add(request("other", [1] * 6, 6))
    sim.add(request("gone", [1] * 9, 6))
    for _ in range({"waiting": 1, "prefill": 9, "decode": 12}[when]):
        sim.step()
    sim.cancel("gone")
    sim.cancel("gone")
    sim.cancel("unknown")
    sim.drain()
    assert sim.finished["gone"] is FinishReason.CANCELLED
    sim.verify()


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("overlap", [False, True])
def test_failed_step_ends_only_its_requests(overlap: bool, when: Failure) -> None:
    sim = simulation(size=2, blocks=32, batch=2, budget=32, overlap=overlap)
    for name in ("a", "b", "later"):
        sim.add(request(name, [1, 2, 3, 1, 2], 6))
    sim.step()
    sim.step(when)
    sim.drain()
    assert sim.finished == {
        "a": FinishReason.ERROR,
        "b": FinishReason.ERROR,
        "later": FinishReason.LENGTH,
    }
    sim.verify()


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("overlap", [False, True])
def test_failed_prefill_is_not_shared(overlap: bool, when: Failure) -> None:
    sim = simulation(size=2, blocks=32, overlap=overlap)
    sim.add(request("failed", [1] * 9, 3))
    sim.step(when)
    sim.add(request("next", [1] * 9, 3))
    assert sim.step().work[0].start == 0
    sim.drain()
    sim.verify()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_broken_row_ends_alone_and_shares_nothing(overlap: bool) -> None:
    """Its chunks are broken before anything is drawn from it; the others answer as ever."""
    sim = simulation(size=2, blocks=64, batch=4, budget=8, overlap=overlap)
    for name in ("a", "bad", "b"):
        sim.add(request(name, [1] * 11, 6))
    sim.step()
    sim.broken.add("bad")
    sim.drain()
    done, failed = FinishReason.LENGTH, FinishReason.ERROR
    assert sim.finished == {"a": done, "bad": failed, "b": done} and sim.outputs["bad"] == []
    # Simulated memory proves that what is shared now was never broken.
    sim.add(request("again", [1] * 11, 3))
    sim.drain()
    sim.verify()


def test_min_tokens_holds_off_end_and_stop_ids() -> None:
    seed = fresh_seed()
    rng = random.Random(seed)
    ended = 0
    for index in range(200):
        sim = simulation()
        least = rng.randint(0, 8)
        params = SamplingParams(max_tokens=12, min_tokens=least, stop_token_ids=(5, 6))
        sim.add(Request(f"r{index}", [rng.randint(1, 6) for _ in range(5)], params))
        sim.drain()
        sim.verify()
        answer = sim.outputs[f"r{index}"]
        assert len(answer) >= least
        assert not any(token in (END, 5, 6) for token in answer[:-1])
        assert least == 0 or answer[least - 1] not in (END, 5, 6)
        ended += len(answer) < 12
    assert ended > 50, seed


def test_context_limit_ends_a_text() -> None:
    sim = simulation(size=4, blocks=4, context=16)
    sim.add(Request("r", [1] * 10, SamplingParams(max_tokens=None, ignore_eos=True)))
    sim.drain()
    assert len(sim.outputs["r"]) == 6 and sim.finished["r"] is FinishReason.LENGTH


def test_overlap_runs_a_finished_row_once_more_and_drops_it() -> None:
    """The end of a text is seen a step late; the extra token must not come out."""
    prompt = next([n] for n in range(1, 200) if next_token([n]) == END)
    sim = simulation(overlap=True)
    sim.add(Request("r", prompt, SamplingParams(max_tokens=10)))
    first, second = sim.step(), sim.step()
    assert len(first.work) == len(second.work) == 1
    assert sim.outputs["r"] == [END] and sim.finished["r"] is FinishReason.STOP
    # Its blocks and row are held until the second plan is committed.
    assert sim.pool.free_count() < len(sim.pool)
    sim.drain()
    sim.verify()


def test_nothing_beyond_max_tokens_is_computed_under_overlap() -> None:
    """How many tokens are in flight is known, so a length limit needs no extra step."""
    sim = simulation(overlap=True)
    sim.add(request("r", [1, 2], 4))
    sim.drain()
    assert sum(w.count for plan in sim.plans for w in plan.work) == 2 + 3
