"""Snapshots of sequence states: random schedules over simulated states, and each rule alone."""

from __future__ import annotations

import pytest
from random_schedules import random_runs
from simulated_kv import Simulation

import halfbyte.engine.schedule.block_pool as block_pool_module
from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import Request
from halfbyte.engine.schedule.block_pool import Prefix, block_hash
from halfbyte.engine.schedule.scheduler_state import SchedulerConfig
from halfbyte.engine.schedule.snapshots import SnapshotPool


def _simulation(slots: int, *, every: int = 1000, **more) -> Simulation:
    config = SchedulerConfig(4, 64, 64, **more)
    return Simulation(4, 32, config, slots=slots, every=every)


def _ask(sim: Simulation, name: str, prompt: list[int], **more) -> None:
    sim.add(Request(name, prompt, SamplingParams(max_tokens=2, ignore_eos=True), **more))
    sim.drain()


def test_random_schedules_with_states_answer_like_each_prompt_alone() -> None:
    met = random_runs(500, states=True)
    # The run must have met what it is about.
    assert met.saved > 1000 and met.restored > 300 and met.preemptions > 250


@pytest.mark.parametrize("kinds", [1, 7])
def test_hash_collisions_never_share_wrong_states(
    monkeypatch: pytest.MonkeyPatch, kinds: int
) -> None:
    monkeypatch.setattr(
        block_pool_module, "block_hash", lambda *a: bytes([block_hash(*a)[0] % kinds])
    )
    random_runs(150, states=True)


def test_an_equal_prompt_goes_on_from_the_last_border_before_its_last_token() -> None:
    sim = _simulation(2)
    _ask(sim, "a", [1] * 12)
    assert sim.computed["a"] == 13 and (sim.saved, sim.restored) == (1, 0)
    # Blocks of 4: the state was put aside after 8 tokens, for the last of 12 is always computed.
    _ask(sim, "b", [1] * 12)
    assert sim.computed["b"] == 13 - 8 and sim.restored == 1
    # A text that only begins alike has no snapshot where they part.
    _ask(sim, "c", [1, 1, 1, 1, 2, 2, 2, 2, 2])
    assert sim.computed["c"] == 10


def test_without_room_for_snapshots_every_prompt_is_computed() -> None:
    sim = _simulation(0)
    for name in "ab":
        _ask(sim, name, [1] * 12)
        assert sim.computed[name] == 13
    assert sim.saved == sim.restored == 0
    # Nor is a chunk cut: a prompt takes one step, an answer of two tokens two.
    assert len([plan for plan in sim.plans if plan.work]) == 4


def test_choices_go_on_from_the_snapshot_of_their_prompt() -> None:
    sim = _simulation(3)
    prompt, params = [1, 2, 3] * 5, SamplingParams(max_tokens=3, ignore_eos=True)
    sim.add(Request("a", prompt, params))
    for index in (1, 2):
        sim.add(Request(f"a.{index}", prompt, params, first="a", index=index))
    sim.drain()
    sim.verify()
    assert sim.restored == 2
    assert sim.computed["a.1"] == sim.computed["a.2"] == 17 - 12


def test_long_prompts_are_put_aside_on_the_way() -> None:
    sim = _simulation(8, every=8)
    _ask(sim, "a", [1] * 30)
    ends = [w.start + w.count for plan in sim.plans for w in plan.work if w.save >= 0]
    assert ends == [8, 16, 24, 28]
    _ask(sim, "b", [1] * 16 + [2] * 3)
    assert sim.computed["b"] == 3 + 1


def test_the_snapshot_not_asked_for_the_longest_goes_first() -> None:
    pool = SnapshotPool(4, 2, 4)
    texts = [Prefix(bytes([i]), None, (i,) * 4, b"") for i in range(3)]
    for text in texts[:2]:
        pool.settle(pool.reserve(), text)
    first = pool.slot(texts[0])
    pool.settle(pool.reserve(), texts[2])
    assert [pool.covered([text]) for text in texts] == [1, 0, 1]
    assert pool.slot(texts[0]) == first and pool.held == 2
    # While both slots wait for states, there is no third.
    slots = pool.reserve(), pool.reserve()
    assert sorted(slots) == [4, 5] and pool.reserve() == -1
    pool.check(reserved=2)
    for slot in slots:
        pool.settle(slot, None)
    assert pool.covered(texts) == 0 and len(pool) == 2
    pool.check(reserved=0)
