"""Scheduler: choices for one prompt, readers of prompts, forced tokens, prompts without answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from random_schedules import random_runs
from simulated_kv import END, Failure, Forcing, Shown, Simulation, alone, next_token

import halfbyte.engine.schedule.scheduler as scheduler_module
from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import FinishReason, Request
from halfbyte.engine.schedule.scheduler_state import SchedulerConfig

BOTH = pytest.mark.parametrize("overlap", [False, True])
CACHE = pytest.mark.parametrize("cache", [False, True])
PROMPT = [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]
"""Two whole blocks of four tokens, and a half one."""


def simulation(overlap: bool = False, cache: bool = True, **more: int) -> Simulation:
    given = {"max_batch": 4, "max_batch_tokens": 64, "max_context": 64, **more}
    blocks = given.pop("blocks", 32)
    return Simulation(4, blocks, SchedulerConfig(**given, prefix_cache=cache), overlap)


def request(name: str, most: int | None = 5, prompt: list[int] = PROMPT, **more) -> Request:
    """A request that nothing but its length ends."""
    return Request(name, prompt, SamplingParams(max_tokens=most, ignore_eos=True), **more)


def add_choices(sim: Simulation, count: int, **more) -> list[str]:
    """Choices ``r``, ``r1`` ... for one prompt."""
    names = ["r", *(f"r{index}" for index in range(1, count))]
    for index, name in enumerate(names):
        sim.add(request(name, first="r" if index else None, index=index, **more))
    return names


def computed(sim: Simulation, name: str) -> int:
    """Positions that were computed for a request, in all."""
    return sum(w.count for plan in sim.plans for w in plan.work if w.request_id == name)


@BOTH
@CACHE
def test_choices_compute_their_prompt_once(overlap: bool, cache: bool) -> None:
    """All but its last token, whose logits each needs: the others wait for the first one."""
    sim = simulation(overlap, cache, max_batch_tokens=6)
    names = add_choices(sim, 3)
    assert sim.scheduler.waiting == 3
    for _ in range(2):
        # The prompt is longer than a step: nobody else has a place before it is computed.
        assert [w.request_id for w in sim.step().work] == ["r"]
    sim.drain()
    sim.verify()
    answer = len(sim.outputs["r"]) - 1
    assert [computed(sim, name) - answer for name in names] == [10, 1, 1]
    assert {sim.finished[name] for name in names} == {FinishReason.LENGTH}


def test_choices_share_blocks_where_requests_do_not() -> None:
    """Without a prefix cache another request of the same prompt computes all of it."""
    sim = simulation(cache=False)
    add_choices(sim, 2)
    sim.add(request("other"))
    sim.drain()
    sim.add(request("late"))
    sim.drain()
    sim.verify()
    assert computed(sim, "r1") == 1 + 4
    assert computed(sim, "other") == computed(sim, "late") == 10 + 4


def test_choices_under_an_id_that_came_before_share_their_own_blocks() -> None:
    """Keys may depend on the length of the prompt: without a prefix cache none is found again."""
    sim = simulation(cache=False)
    for _ in range(2):
        sim.finished.clear()
        sim.prompts_done.clear()
        add_choices(sim, 2)
        (first,) = sim.step().work
        (init,) = sim.step().admitted
        assert init.request.id == "r1" and init.blocks == first.new_blocks[:2]
        sim.drain()


@pytest.mark.parametrize("length", range(1, 10))
def test_the_last_block_that_is_lent_is_copied(length: int) -> None:
    """Full blocks are shared; what is not full is copied, as each choice goes on in it."""
    sim = simulation(cache=False)
    for index in range(3):
        name = f"r{index}"
        first = "r0" if index else None
        sim.add(request(name, prompt=PROMPT[:length], first=first, index=index))
    (work,) = sim.step().work
    inits = sim.step().admitted
    full, partial = divmod(length - 1, 4)
    assert [init.blocks for init in inits] == [work.new_blocks[:full] if length > 1 else ()] * 2
    for init in inits:
        assert (init.copy is not None) == (partial > 0)
        assert init.copy is None or init.copy[0] == work.new_blocks[full]
    assert len({init.copy[1] for init in inits if init.copy}) == (2 if partial else 0)
    sim.drain()
    sim.verify()


def test_lent_blocks_are_taken_back_when_nothing_else_is_left() -> None:
    """The choices wait for rows; the blocks that they hold must not keep others from running."""
    sim = simulation(cache=False, blocks=9, max_batch=1, max_context=32)
    add_choices(sim, 3, most=2)
    sim.add(request("large", 18, prompt=[5, *PROMPT], priority=-1))
    sim.drain()
    sim.verify()
    assert len(sim.outputs["large"]) == 18 and len(sim.outputs["r2"]) == 2


@BOTH
@CACHE
@pytest.mark.parametrize("end", ["cancelled", "stopped", "early", "late", "broken"])
def test_the_others_go_on_without_the_first(overlap: bool, cache: bool, end: str) -> None:
    """It ends before its prompt is computed: they compute it themselves."""
    sim = simulation(overlap, cache, max_batch_tokens=6)
    names = add_choices(sim, 3)
    sim.step()
    if end == "broken":
        sim.broken.add("r")
    elif end == "cancelled":
        sim.cancel("r")
    elif end == "stopped":
        sim.end_silently("r")
    failure: Failure = "early" if end == "early" else "late" if end == "late" else None
    sim.step(failure)
    sim.drain()
    sim.verify()
    assert sim.outputs["r"] == []
    for name in names[1:]:
        assert sim.outputs[name] == alone(sim.requests[name], 64)[0]
        assert sim.finished[name] is FinishReason.LENGTH


@CACHE
def test_choices_that_wait_may_be_cancelled(cache: bool) -> None:
    sim = simulation(cache=cache, max_batch_tokens=6)
    names = add_choices(sim, 3)
    sim.step()
    for name in names[1:]:
        sim.cancel(name)
    assert sim.scheduler.waiting == 0
    sim.drain()
    sim.verify()
    assert [sim.finished[name] for name in names[1:]] == [FinishReason.CANCELLED] * 2
    assert sim.finished["r"] is FinishReason.LENGTH


@BOTH
@CACHE
def test_preempted_choices_answer_the_same(overlap: bool, cache: bool) -> None:
    """Together they outgrow the pool by far."""
    sim = simulation(overlap, cache, blocks=8, max_context=32)
    names = add_choices(sim, 4, most=20)
    sim.drain()
    sim.verify()
    assert sim.scheduler.preemptions > 0
    assert all(len(sim.outputs[name]) == 20 for name in names)


@BOTH
def test_a_prompt_alone_is_computed_and_cached(overlap: bool) -> None:
    sim = simulation(overlap, max_batch_tokens=6)
    sim.add(request("r", most=0))
    sim.drain()
    assert computed(sim, "r") == 10 and sim.outputs["r"] == []
    assert sim.finished["r"] is FinishReason.LENGTH
    sim.add(request("next", most=1))
    sim.drain()
    sim.verify()
    assert computed(sim, "next") == 2


def test_a_prompt_alone_may_fill_the_context() -> None:
    sim = simulation(max_context=10)
    sim.add(request("r", most=0))
    sim.drain()
    sim.verify()
    assert sim.finished["r"] is FinishReason.LENGTH and computed(sim, "r") == 10


@BOTH
def test_a_reader_sees_what_the_cache_already_has(overlap: bool) -> None:
    """From its first position on; what is before that may come from the cache."""
    sim = simulation(overlap)
    sim.add(request("first", most=1))
    sim.drain()
    for begin, start in ((0, 0), (4, 4), (7, 4), (8, 8), (9, 8)):
        reader = Shown(10, begin)
        name = f"from {begin}"
        sim.add(request(name, most=0, reader=reader))
        sim.drain()
        assert reader.complete and reader.shown == 10 - begin
        assert computed(sim, name) == 10 - start
    sim.verify()


def test_logits_that_are_read_have_room_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all readers together; hidden states and other tokens need none."""
    monkeypatch.setattr(scheduler_module, "READ_ROOM", 6)
    sim = simulation()
    readers = {"a": Shown(10), "b": Shown(10), "hidden": Shown(10, hidden=True)}
    for index, (name, reader) in enumerate(readers.items()):
        prompt = [index + 1, *PROMPT[1:]]
        sim.add(request(name, prompt=prompt, priority=-index, reader=reader))
    sim.add(request("plain", prompt=[5, *PROMPT[1:]], priority=-5))
    counts = []
    for _ in range(4):
        plan = sim.step()
        counts.append({w.request_id: w.count for w in plan.work if w.start < 10})
    assert counts == [
        {"plain": 10, "hidden": 10, "b": 6},
        {"b": 4, "a": 2},
        {"a": 6},
        {"a": 2},
    ]
    sim.drain()
    sim.verify()


@BOTH
def test_a_preempted_prompt_is_shown_again(overlap: bool) -> None:
    """A text that is already running outgrows the pool while the prompt is read in pieces."""
    sim = simulation(overlap, blocks=8, max_context=32, max_batch_tokens=2)
    sim.add(request("old", most=20, prompt=[4] * 11, priority=-1))
    reader = Shown(18)
    while len(sim.outputs["old"]) < 1:
        sim.step()
    sim.add(request("read", most=2, prompt=[1, 2, 3] * 6, reader=reader))
    sim.drain()
    sim.verify()
    assert sim.scheduler.preemptions > 0 and reader.complete and reader.shown > 18


def test_forced_tokens_come_with_the_one_that_was_drawn() -> None:
    """One step for each drawn token, however many follow it."""
    sim = simulation()
    force = Forcing(3)
    sim.add(request("r", most=30, draw=force))
    text, steps = list(PROMPT), 0
    while len(text) < 40:
        token = next_token(text)
        text.append(token)
        for _ in range(min(force.count(text), 40 - len(text))):
            text.append(next_token(text))
        steps += 1
    sim.drain()
    sim.verify()
    assert sim.outputs["r"] == text[10:] and sim.forced > 10
    assert len([plan for plan in sim.plans if plan.work]) == steps


def test_a_step_launched_before_forced_tokens_were_known_draws_nothing() -> None:
    """With overlap the next step has one token of them; the one after it has the others."""
    prompt = next(
        [n, m]
        for n in range(1, 7)
        for m in range(1, 7)
        if Forcing(3).count([n, m, next_token([n, m])]) == 3
    )
    sim = simulation(overlap=True)
    sim.add(request("r", most=None, prompt=prompt, draw=Forcing(3)))
    counts = [[(w.start, w.count) for w in sim.step().work] for _ in range(3)]
    # Of the tokens at 2 to 5 the second step knows the place of the first alone.
    assert counts == [[(0, 2)], [(2, 1)], [(3, 3)]]
    assert sim.forced >= 3 and sim.nothing_drawn == 1
    sim.cancel("r")
    sim.drain()
    sim.verify()


@BOTH
@pytest.mark.parametrize("limit", ["max_tokens", "max_context", "end"])
def test_forced_tokens_end_where_the_answer_does(overlap: bool, limit: str) -> None:
    for most in range(1, 9):
        sim = simulation(overlap, max_context=10 + most if limit == "max_context" else 64)
        one = request("r", most=most if limit == "max_tokens" else None, draw=Forcing(3))
        if limit == "end":
            params = SamplingParams(max_tokens=40)
            one = replace(one, params=params, prompt=[most % 7, *PROMPT[1:]])
        sim.add(one)
        sim.drain()
        sim.verify()
        answer = sim.outputs["r"]
        if limit == "end":
            assert END not in answer[:-1]
        else:
            assert len(answer) == most


def test_random_schedules_with_little_room_for_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "READ_ROOM", 3)
    totals = random_runs(200)
    assert totals.read_again > 0 and totals.preemptions > 50
