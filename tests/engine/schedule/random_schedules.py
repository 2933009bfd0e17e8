"""Random requests, schedules and failures for the simulated scheduler, all from one number."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from simulated_kv import Forcing, Shown, Simulation

from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import Request
from halfbyte.engine.schedule.scheduler_state import SchedulerConfig


@dataclass(slots=True)
class Totals:
    """What random schedules met.

    Attributes:
        steps: steps in all.
        preemptions: requests that were put back.
        forced: tokens that came with a drawn one.
        nothing_drawn: rows whose step gave no token, because it was known.
        waited: requests that waited for the prompt of another.
        read_again: readers that were shown positions twice.
        saved: states that were put aside.
        restored: texts that went on from one.
    """

    steps: int = 0
    preemptions: int = 0
    forced: int = 0
    nothing_drawn: int = 0
    waited: int = 0
    read_again: int = 0
    saved: int = 0
    restored: int = 0

    def add(self, sim: Simulation) -> None:
        self.steps += len(sim.plans)
        self.preemptions += sim.scheduler.preemptions
        self.forced += sim.forced
        self.saved += sim.saved
        self.restored += sim.restored
        self.nothing_drawn += sim.nothing_drawn
        self.waited += sum(request.first is not None for request in sim.requests.values())
        for request in sim.requests.values():
            reader = request.reader
            if isinstance(reader, Shown):
                self.read_again += reader.shown > reader.length - reader.begin


def random_runs(count: int, states: bool = False) -> Totals:
    """``count`` random schedules, of a model with ``states`` if it says so; the seed of one that
    fails is printed.
    """
    seed = random.randrange(1 << 40)
    print("seed", seed)
    totals = Totals()
    for index in range(count):
        try:
            totals.add(random_run(seed + index, states))
        except Exception:
            print("schedule of seed", seed + index)
            raise
    return totals


def random_request(rng: random.Random, name: str, max_context: int) -> Request:
    """Prompts share beginnings often; limits, stops, priorities, readers and forcing vary."""
    most = rng.choice([None, 0, 1, 2, 5, 20])
    length = rng.randint(1, max_context - (most != 0))
    if rng.random() < 0.6:
        prompt = ([1, 2, 3] * max_context)[:length]
        if rng.random() < 0.5:
            prompt[rng.randrange(length)] = 4
    else:
        prompt = [rng.randint(1, 3) for _ in range(length)]
    params = SamplingParams(
        max_tokens=most,
        min_tokens=rng.randint(0, 6 if most is None else most) if rng.random() < 0.3 else 0,
        stop_token_ids=(5,) if rng.random() < 0.2 else (),
        ignore_eos=rng.random() < 0.3,
    )
    reader = None
    if rng.random() < 0.25:
        begin = rng.choice([0, rng.randint(0, length - 1)])
        reader = Shown(length, begin, hidden=rng.random() < 0.4)
    return Request(
        name,
        prompt,
        params,
        priority=rng.choice([0, 0, 1, -1]),
        cache_salt=rng.choice(["", "", "a"]),
        draw=rng.choice([None, None, Forcing(1), Forcing(3)]),
        reader=reader,
    )


def random_choices(rng: random.Random, name: str, max_context: int) -> list[Request]:
    """A request, or several for one prompt; only the first of them has a reader.

    They differ in what ends them, as choices do that draw with different seeds.
    """
    first = random_request(rng, name, max_context)
    group = [first]
    for index in range(1, rng.choice([1, 1, 1, 2, 3, 5])):
        params = replace(first.params, stop_token_ids=rng.choice([(), (index % 7,)]))
        group.append(
            replace(
                first,
                id=f"{name}.{index}",
                params=params,
                reader=None,
                first=name,
                index=index,
            )
        )
    return group


def random_simulation(rng: random.Random, states: bool = False) -> Simulation:
    """Pools are at most a few blocks larger than one context, so preemption is common."""
    size, context = rng.choice([1, 2, 4, 8]), rng.randint(3, 48)
    blocks = -(-context // size) + rng.choice([0, 0, 1, 2, 6])
    batch = rng.randint(1, 6)
    config = SchedulerConfig(
        max_batch=batch,
        max_batch_tokens=max(batch, rng.randint(1, 24)),
        max_context=context,
        prefix_cache=rng.random() < 0.7,
        max_step_s=rng.choice([0.0, 1e-3, 0.1]),
    )
    keep = rng.choice([None, rng.randint(0, blocks)])
    return Simulation(
        size,
        blocks,
        config,
        overlap=rng.random() < 0.5,
        keep=keep,
        clock=rng.choice([None, lambda work: rng.uniform(1e-6, 1.0)]),
        slots=rng.choice([0, 1, 2, 5, 20]) if states else None,
    )


def random_run(seed: int, states: bool = False) -> Simulation:
    """One whole random schedule, verified; returns it for counting."""
    rng = random.Random(seed)
    sim = random_simulation(rng, states)
    waiting = [
        random_choices(rng, f"r{i}", sim.config.max_context) for i in range(rng.randint(1, 8))
    ]
    fail_rate = rng.choice([0.0, 0.0, 0.02, 0.1])
    stop_rate = rng.choice([0.0, 0.02, 0.1])
    break_rate = rng.choice([0.0, 0.0, 0.05])
    while waiting or sim.has_work():
        while waiting and rng.random() < 0.4:
            for request in waiting.pop():
                sim.add(request)
        if sim.live and rng.random() < stop_rate:
            name = rng.choice(sim.live)
            sim.cancel(name) if rng.random() < 0.5 else sim.end_silently(name)
        if sim.live and rng.random() < break_rate:
            sim.broken.add(rng.choice(sim.live))
        sim.step(rng.choice(["early", "late"]) if rng.random() < fail_rate else None)
        assert len(sim.plans) < 20_000
    sim.verify()
    return sim
