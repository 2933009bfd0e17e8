"""The bound of a step's time, over a simulated machine whose clock nobody has to trust."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from simulated_kv import Simulation

from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import Request
from halfbyte.engine.schedule.plan import RowWork
from halfbyte.engine.schedule.scheduler_state import SchedulerConfig
from halfbyte.engine.schedule.step_cost import LEAST_CHUNK, StepCost

LIMIT = 0.1
Clock = Callable[[tuple[RowWork, ...]], float]


def fresh_rng() -> random.Random:
    seed = random.randrange(1 << 40)
    print("seed", seed)
    return random.Random(seed)


def machine(rng: random.Random, fixed: float, token: float, pair: float, noise: float) -> Clock:
    """Seconds of a step on a machine with these costs; every step is off by up to ``noise``."""

    def seconds(work: tuple[RowWork, ...]) -> float:
        total = fixed
        for item in work:
            total += token * item.count
            total += pair * sum(range(item.start + 1, item.start + item.count + 1))
        return total * rng.uniform(1 - noise, 1 + noise)

    return seconds


def some_machine(rng: random.Random, noise: float) -> Clock:
    """From one that computes 10 000 tokens a second to one that computes 200."""
    token = 10 ** rng.uniform(-4.0, -2.3)
    return machine(
        rng, token * rng.uniform(0, 10), token, token / 10 ** rng.uniform(3.0, 5.0), noise
    )


def simulation(clock: Clock, limit: float = LIMIT, overlap: bool = False) -> Simulation:
    config = SchedulerConfig(4, 1024, 8192, True, limit)
    return Simulation(64, 512, config, overlap, clock=clock)


def request(name: str, length: int, most: int) -> Request:
    return Request(name, [1] * length, SamplingParams(max_tokens=most, ignore_eos=True))


@pytest.mark.parametrize("overlap", [False, True])
def test_steps_beside_decoding_rows_keep_the_bound(overlap: bool) -> None:
    """On machines of all kinds: from the first chunk on, but for noise and the least chunk."""
    rng = fresh_rng()
    for turn in range(6):
        clock = some_machine(rng, 0.1)
        sim = simulation(clock, overlap=overlap)
        sim.add(request("stream", rng.randint(1, 40), 2000))
        for _ in range(rng.randint(3, 30)):
            sim.step()
        sim.add(request("long", 4500, 2))
        first = len(sim.plans)
        while not sim.outputs["long"]:
            sim.step()
        mixed = [
            (plan, seconds)
            for plan, seconds in zip(sim.plans[first:], sim.seconds[first:], strict=True)
            if len(plan.work) == 2 and any(w.count > 1 for w in plan.work)
        ]
        assert mixed, turn
        for plan, seconds in mixed:
            # Everybody who decodes gets a token in every step.
            assert sorted(w.count for w in plan.work)[0] == 1
            chunk = max(w.count for w in plan.work)
            if chunk > LEAST_CHUNK:
                # Off by a tenth each: the step itself, and those that foretold it.
                assert seconds < 1.5 * LIMIT, (turn, chunk)
        # Where a least chunk takes far less than the bound, chunks grow until the time is used.
        if clock((RowWork(0, "", 4500, LEAST_CHUNK, (), False),)) > LIMIT / 4:
            continue
        used = [s > 0.6 * LIMIT or max(w.count for w in p.work) > 900 for p, s in mixed[:-1]]
        assert True in used[:14], turn
        later = used[used.index(True) :]
        assert sum(later) >= 0.8 * len(later), turn


def test_nobody_decodes_nothing_changes() -> None:
    rng = fresh_rng()
    clock = some_machine(rng, 0.1)
    plans = []
    for limit in (0.0, LIMIT):
        sim = simulation(clock, limit)
        sim.add(request("long", 5000, 1))
        sim.add(request("next", 3000, 1))
        while sim.has_work():
            sim.step()
        plans.append(sim.plans)
    assert plans[0] == plans[1]


def test_before_anything_was_measured_a_chunk_is_small_and_then_doubles() -> None:
    cost = StepCost()
    decode = RowWork(0, "a", 10, 1, (), True)
    assert cost.chunk((decode,), 0, 5000, LIMIT) == LEAST_CHUNK
    assert cost.chunk((decode,), 0, 7, LIMIT) == 7
    sizes = []
    for _ in range(6):
        count = cost.chunk((decode,), 0, 5000, LIMIT)
        cost.observe((decode, RowWork(1, "b", 0, count, (), False)), 1e-6 * count)
        sizes.append(count)
    assert all(b <= 2 * (a + 1) for a, b in pairwise(sizes))
    assert sizes[-1] > 10 * sizes[0]


def test_a_slow_machine_still_comes_to_the_end_of_a_prompt() -> None:
    """A decode step alone takes longer than the bound."""
    sim = simulation(machine(fresh_rng(), 0.5, 0.05, 0.0, 0.0))
    sim.add(request("stream", 3, 4000))
    sim.step()
    sim.add(request("long", 1000, 1))
    sim.add(request("other", 100, 1))
    while not (sim.outputs["long"] and sim.outputs["other"]):
        plan = sim.step()
        chunks = [w.count for w in plan.work if w.request_id != "stream"]
        assert len(chunks) <= 1, "one chunk is progress, two are a longer step"
    assert len(sim.plans) < 1200 / LEAST_CHUNK * 2


def test_two_prompts_share_the_time_of_a_step() -> None:
    clock = machine(fresh_rng(), 0.002, 0.001, 0.0, 0.0)
    sim = simulation(clock)
    sim.add(request("stream", 50, 4000))
    for _ in range(5):
        sim.step()
    for name in ("one", "two"):
        sim.add(request(name, 150, 1))
    while sim.scheduler.waiting or not (sim.outputs["one"] and sim.outputs["two"]):
        sim.step()
        if sum(w.count > 1 for w in sim.plans[-1].work):
            assert sim.seconds[-1] <= 1.001 * LIMIT


def test_a_machine_that_becomes_slow_is_noticed() -> None:
    """Somebody else begins to compute on it: three times slower from one step to the next."""
    rng = fresh_rng()
    speed = [1.0]
    plain = machine(rng, 0.003, 0.0005, 1e-8, 0.05)
    sim = simulation(lambda work: plain(work) * speed[0])
    sim.add(request("stream", 20, 4000))
    sim.step()
    sim.add(request("long", 8000, 1))
    for _ in range(20):
        sim.step()
    speed[0] = 3.0
    for _ in range(12):
        sim.step()
    assert max(sim.seconds[-3:]) < 1.5 * LIMIT, sim.seconds[-12:]
