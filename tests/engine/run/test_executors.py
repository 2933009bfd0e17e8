"""What each executor computes when, on a network that only notes down how it is called."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from halfbyte.engine.models.rope import Rotaries
from halfbyte.engine.run.executors import (
    SPARE_TOKENS,
    CaptureError,
    CapturingExecutor,
    EagerExecutor,
    OneByOneExecutor,
    RecordingExecutor,
)
from halfbyte.engine.run.kv_cache import KVCache, StateSpec
from halfbyte.engine.run.rows import Rows
from halfbyte.engine.run.step import StepInputs
from halfbyte.loaders.model.config import ModelConfig

MODEL = ModelConfig("llama", 50, 8, 1, 1, 1, 8, 16, 1e-5, 64)


class Tape:
    """A recorder and its network: "logits" are token ids, computed at once or when replayed.

    Args:
        recordable: of the network.
        eager: ops compute although nothing is recorded, as on a GPU.
    """

    def __init__(self, recordable: bool = True, eager: bool = False) -> None:
        self.recordable = recordable
        self.recording = False
        self.eager = eager
        self.calls: list[str] = []
        self.todo: list[tuple[Tensor, StepInputs]] = []

    def forward(self, step: StepInputs, kv: KVCache, out: Tensor | None = None) -> Tensor:
        self.calls.append("noted" if self.recording else "computed")
        out = torch.full((step.wanted, 1), -1.0) if out is None else out
        if self.recording:
            self.todo.append((out, step))
        else:
            assert self.eager, "an op was called that nobody would run"
            fill(out, step)
        return out

    def logits_buffer(self, rows: int) -> Tensor:
        return torch.empty(rows, 1)

    def cap(self, logits_SV: Tensor) -> Tensor:
        return logits_SV

    def begin_record(self) -> None:
        assert not self.recording
        self.recording, self.todo = True, []

    def end_record(self) -> Replay:
        self.recording = False
        return Replay(self.todo, self.calls)


class Replay:
    """A program of the tape."""

    def __init__(self, todo: list[tuple[Tensor, StepInputs]], calls: list[str]) -> None:
        self.todo, self.calls = todo, calls

    def run(self) -> None:
        self.calls.append("run")
        for out, step in self.todo:
            fill(out, step)


def fill(out: Tensor, step: StepInputs) -> None:
    chosen = step.token_ids if step.sample_index is None else step.token_ids[step.sample_index]
    out.copy_(chosen.unsqueeze(-1))


def network(tape: Tape) -> Any:
    """The tape in the place of a model."""
    return tape


def a_cache() -> KVCache:
    return KVCache([StateSpec(((1, 8),))], 4, 16, torch.float32)


def some_rows() -> Rows:
    seed = random.randrange(1 << 40)
    print("seed", seed)
    rows = Rows(4 + SPARE_TOKENS, 32, 16, Rotaries(MODEL))
    rows.tokens.random_(0, 50, generator=torch.Generator().manual_seed(seed))
    return rows


def decode(rows: Rows, count: int, start: int) -> tuple[StepInputs, list[int]]:
    step = rows.step([(row, start, 1) for row in range(count)], None)
    return step, rows.tokens[:count, start].tolist()


def test_decode_steps_are_replayed_by_their_key() -> None:
    rows, tape = some_rows(), Tape()
    made = RecordingExecutor(network(tape), a_cache(), 3, tape)
    for start, count, want in (
        (0, 2, ["noted", "run"]),
        (1, 2, ["run"]),
        (2, 3, ["noted", "run"]),
        (5, 2, ["run"]),
        (6, 4 + SPARE_TOKENS, ["noted", "run"]),  # above the limit: noted for this once
        (7, 4 + SPARE_TOKENS, ["noted", "run"]),
    ):
        tape.calls.clear()
        step, ids = decode(rows, count, start)
        assert made.run(step).flatten().tolist() == ids
        assert tape.calls == want, (start, count)


def test_chunks_of_prompts_and_networks_that_look_at_numbers_are_not_kept() -> None:
    rows = some_rows()
    chunk = rows.step([(0, 0, 2 + SPARE_TOKENS), (1, 3, 1)], [True, False])
    for tape in (Tape(), Tape(recordable=False)):
        made = RecordingExecutor(network(tape), a_cache(), 3, tape)
        steps = [chunk] if tape.recordable else [chunk, decode(rows, 2, 4)[0]]
        for step in steps * 2:
            tape.calls.clear()
            assert made.run(step).shape[0] == (1 if step is chunk else 2)
            assert tape.calls == ["noted", "run"]


def test_a_few_tokens_without_logits_are_replayed_as_rows() -> None:
    """What a token sees is its own text up to it, in whatever row of the step it stands."""
    rows, tape = some_rows(), Tape()
    rows.block_tables[:] = torch.arange(rows.block_tables.numel()).view_as(rows.block_tables)
    made = RecordingExecutor(network(tape), a_cache(), 3, tape)
    seen: list[StepInputs] = []
    for runs, wanted in (
        ([(0, 4, 1), (1, 3, 3), (2, 14, 4)], [1, 1, 1]),
        ([(2, 20, 3), (0, 9, 4), (1, 1, 1)], [1, 0, 1]),
        ([(1, 2, 4), (2, 5, 4)], [3, 0]),
    ):
        step = rows.step(runs, wanted)
        tape.calls.clear()
        logits = made.run(step)
        assert tape.calls == (["run"] if seen else ["noted", "run"])
        assert step.sample_index is not None
        assert logits.flatten().tolist() == step.token_ids[step.sample_index].tolist()
        seen.append(step.as_decode())
        found = {
            (int(slot), int(position), int(token), int(table[position // 16]) * 16 + position % 16)
            for slot, position, token, table in zip(
                seen[-1].slots.tolist(),
                seen[-1].positions.tolist(),
                seen[-1].token_ids.tolist(),
                seen[-1].block_tables.tolist(),
                strict=True,
            )
        }
        tokens = [(row, at) for row, start, count in runs for at in range(start, start + count)]
        assert found == {
            (slot, at, int(rows.tokens[row, at]), slot)
            for row, at in tokens
            for slot in [int(rows.block_tables[row, at // 16]) * 16 + at % 16]
        }
        assert seen[-1].decodes and [s.start for s in seen[-1].spans] == seen[-1].positions.tolist()
    tape.calls.clear()
    hidden = rows.step([(0, 4, 2)], [1], [2])
    made.run(hidden)
    assert tape.calls == ["noted", "run"]


def test_a_capture_comes_after_one_computation() -> None:
    """For what is compiled or allocated at the first; and other steps are never captured."""
    rows, tape = some_rows(), Tape(eager=True)
    made = CapturingExecutor(network(tape), a_cache(), 6, tape)
    for start, count, want in (
        (0, 4, ["computed", "noted", "run"]),
        (9, 4, ["run"]),
        (2, 5, ["computed", "noted", "run"]),  # a graph of 6 rows, as the next ones
        (3, 6, ["run"]),
        (4, 5, ["run"]),
        (5, 3, ["computed", "noted", "run"]),
        (6, 7, ["computed"]),  # above the limit
    ):
        tape.calls.clear()
        step, ids = decode(rows, count, start)
        assert made.run(step).flatten().tolist() == ids and tape.calls == want
    tape.calls.clear()
    assert made.run(rows.step([(2, 0, 7)], [True])).tolist() == [[float(rows.tokens[2, 6])]]
    assert tape.calls == ["computed"]


def test_small_steps_of_prompts_are_captured_with_room_for_every_row() -> None:
    rows, tape = some_rows(), Tape(eager=True)
    made = CapturingExecutor(network(tape), a_cache(), 6, tape, tokens=24)
    first = ["computed", "noted", "run"]
    for runs, wanted, want in (
        ([(0, 0, 13)], [1], first),  # a graph of 16 tokens, as the next ones
        ([(0, 13, 1), (2, 0, 9), (5, 7, 6)], [1, 0, 1], ["run"]),
        ([(1, 0, 2), (3, 3, 1), (4, 5, 1)], [1, 1, 1], ["run"]),
        ([(1, 2, 1), (3, 0, 16)], [1, 1], first),
        ([(3, 0, 20)], [0], ["run"]),
        ([(3, 0, 25)], [1], ["computed"]),  # too many tokens
        ([(0, 3, 9)], [8], ["computed"]),  # too many logits
        ([(row, 3, 1 + (row == 0)) for row in range(7)], [1] * 7, ["computed"]),
    ):
        tape.calls.clear()
        step = rows.step(runs, wanted)
        assert step.sample_index is not None
        logits = made.run(step)
        assert logits.flatten().tolist() == step.token_ids[step.sample_index].tolist()
        assert tape.calls == want, runs
    tape.calls.clear()
    made.run(rows.step([(0, 4, 2)], [1], [2]))  # hidden states are wanted
    assert tape.calls == ["computed"]


def test_tokens_that_stand_for_nothing_are_in_no_span() -> None:
    rows = some_rows()
    rows.block_tables.random_(0, 4)
    step = rows.step([(2, 3, 4), (0, 9, 1)], [1, 0])
    padded = step.padded(8, 3)
    assert padded.spans == step.spans
    assert padded.slots.tolist() == [*step.slots.tolist(), -1, -1, -1]
    assert padded.row_index.tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    assert padded.sample_index is not None and padded.sample_index.tolist() == [3, 0, 0]
    assert torch.equal(padded.block_tables[2], step.block_tables[0])


def test_rows_that_stand_for_nothing_keep_nothing() -> None:
    rows = some_rows()
    rows.block_tables.random_(0, 4)
    step, _ = decode(rows, 3, 7)
    padded = step.padded(6, 6)
    assert padded.decodes and step.padded(3, 3) is step
    assert padded.slots.tolist() == [*step.slots.tolist(), -1, -1, -1]
    assert [s.length for s in padded.spans] == [8, 8, 8, 1, 1, 1]
    assert padded.positions.tolist() == [7, 7, 7, 0, 0, 0]
    assert padded.row_index.tolist() == [0, 1, 2, 0, 0, 0]
    assert torch.equal(padded.block_tables[:3], step.block_tables)
    assert torch.equal(padded.block_tables[3:], step.block_tables[:1].expand(3, -1))
    assert torch.equal(padded.rope[:3], step.rope) and len(padded.rope) == 6


def test_where_no_graph_can_be_captured_ops_are_launched_one_by_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Tape):
        def end_record(self) -> Replay:
            super().end_record()
            raise CaptureError("operation not permitted when stream is capturing")

    rows, tape = some_rows(), Broken(eager=True)
    made = CapturingExecutor(network(tape), a_cache(), 4, tape)
    for start, want in ((0, ["computed", "noted", "computed"]), (1, ["computed"])):
        tape.calls.clear()
        step, ids = decode(rows, 3, start)
        assert made.run(step).flatten().tolist() == ids and tape.calls == want
    assert caplog.text.count("no CUDA graphs") == 1 and "not permitted" in caplog.text


def test_late_captures_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    rows, tape = some_rows(), Tape(eager=True)
    made = CapturingExecutor(network(tape), a_cache(), 4, tape)
    monitor = made.monitor()
    assert made.monitor() is monitor
    made.run(decode(rows, 4, 0)[0])
    with monitor:
        made.run(decode(rows, 4, 1)[0])
        assert monitor.events == []
        made.run(decode(rows, 2, 2)[0])
    (event,) = monitor.events
    assert (event.what, event.kernel, event.detail) == ("capture", "CUDA graph", "2 tokens")
    assert "capture of CUDA graph in" in caplog.text


def test_one_by_one_every_token_is_a_step() -> None:
    rows, seen = some_rows(), []
    tape, cache = Tape(eager=True), a_cache()
    step = rows.step([(0, 2, 4), (3, 9, 1), (1, 0, 2)], [True, True, False])

    def prepare(one: StepInputs) -> StepInputs:
        seen.append((one.token_ids.tolist(), one.positions.tolist(), one.spans[0].length))
        assert one.decodes and torch.equal(one.block_tables[0], rows.block_tables[0])
        return one

    alone = OneByOneExecutor(network(tape), cache, 0, prepare).run(step)
    places = [(0, 2), (0, 3), (0, 4), (0, 5), (3, 9), (1, 0), (1, 1)]
    assert seen == [([int(rows.tokens[r, p])], [p], p + 1) for r, p in places]
    assert torch.equal(alone, EagerExecutor(network(tape), cache, 0).run(step))


def test_threads_of_torch_are_held_to_one_beside_a_pool() -> None:
    tape, before = Tape(), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with RecordingExecutor(network(tape), a_cache(), 3, tape).threads():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with EagerExecutor(network(tape), a_cache(), 0).threads():
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
