"""What the exact tests count on, for many draws: the scheduler alone, without a model."""

from __future__ import annotations

import random
from typing import Any

import pytest
from bits import Work, random_work, short_work
from test_exact import COUNT, FEW, LONG_COUNT, WAYS

from halfbyte.engine.config import EngineConfig
from halfbyte.engine.request import Request, Sampled
from halfbyte.engine.schedule.block_pool import BlockPool
from halfbyte.engine.schedule.plan import StepPlan, StepResult
from halfbyte.engine.schedule.scheduler import Scheduler, SchedulerConfig


def scheduled(work: Work, *, turns: int = 1, **options: Any) -> tuple[int, int]:
    """Preemptions in all, and tokens that the prefix cache supplied in the last turn."""
    config = EngineConfig(**options)
    pool = BlockPool(-(-config.kv_tokens // config.block_size), config.block_size)
    limits = SchedulerConfig(
        config.max_batch, config.max_batch_tokens, config.max_context or 512, config.prefix_cache
    )
    scheduler = Scheduler(limits, pool, frozenset())
    cached: dict[str, int] = {}
    pending: StepPlan | None = None

    def commit(plan: StepPlan | None) -> None:
        if plan is not None:
            tokens = {item.request_id: (Sampled(5),) for item in plan.work if item.needs_sample}
            scheduler.commit(plan, StepResult(tokens))

    for turn in range(turns):
        cached.clear()
        for index, prompt in enumerate(work.prompts):
            scheduler.add(Request(f"{turn}-{index}", prompt, work.params[index]))
        while scheduler.has_work() or pending is not None:
            plan = scheduler.schedule()
            for init in plan.admitted:
                name = init.request.id
                cached.setdefault(name, scheduler.cached_tokens(name))
            if config.overlap:
                commit(pending)
                pending = plan if plan.work else None
            else:
                commit(plan)
    return scheduler.preemptions, sum(cached.values())


def assert_premises(seed: int) -> None:
    """Of every way that is named after something that must happen."""
    short = short_work(seed)
    works = [random_work(seed, count, vocab=600) for count in (COUNT, LONG_COUNT)]
    for way, options in WAYS.items():
        if "preempted" in way:
            for work in works:
                assert scheduled(work, **options)[0] > 0, (way, seed)
            assert scheduled(short, **options | FEW)[0] > 0, (way, seed)
        elif "warm" in way:
            for work in works:
                preemptions, cached = scheduled(work, **options)
                assert preemptions == 0 and cached > 500, (way, seed, cached)


def test_the_ways_meet_what_they_are_named_after() -> None:
    for _ in range(5):
        assert_premises(random.randrange(1 << 40))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_ways_meet_what_they_are_named_after_with_any_seed() -> None:
    for seed in range(10_000):
        assert_premises(seed)
