"""Inputs of a step on a device, and steps of prompts that are replayed from them."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from halfbyte.engine.backends import one_object_backend
from halfbyte.engine.backends.device_step import DeviceStep, upload
from halfbyte.engine.backends.triton_ops import TritonOps
from halfbyte.engine.models.decoder import Decoder, block_states
from halfbyte.engine.models.rope import Rotaries
from halfbyte.engine.run.executors import CapturingExecutor, EagerExecutor
from halfbyte.engine.run.kv_cache import KVCache
from halfbyte.engine.run.rows import Rows
from halfbyte.engine.run.step import StepInputs
from halfbyte.loaders import open_checkpoint

CPU = torch.device("cpu")
BLOCK, ROWS = 16, 4


def test_an_upload_is_one_transfer_of_parts_on_16_bytes() -> None:
    given = [
        torch.arange(3),
        torch.rand(5, 3),
        torch.empty(0, 4, dtype=torch.int32),
        torch.arange(7, dtype=torch.int32)[None],
    ]
    made = upload(given, CPU)
    assert len({tensor.untyped_storage().data_ptr() for tensor in made}) == 1
    for want, tensor in zip(given, made, strict=True):
        assert torch.equal(tensor, want) and tensor.dtype == want.dtype
        assert tensor.storage_offset() * tensor.element_size() % 16 == 0


class Model:
    """A network whose recorded steps are computed anew from their buffers, as a graph does.

    Args:
        decoder: the network.
    """

    recordable = True

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.logits_buffer, self.cap = decoder.logits_buffer, decoder.cap
        self.recorded: list[partial[Tensor]] | None = None
        self.replays = 0

    def forward(self, step: StepInputs, kv: KVCache, out: Tensor | None = None) -> Tensor:
        logits = self.decoder.forward(step, kv, out)
        if self.recorded is not None:
            assert out is not None
            self.recorded.append(partial(self.decoder.forward, step, kv, out))
            out.fill_(torch.nan)
        return logits

    def begin_record(self) -> None:
        self.recorded = []

    def end_record(self) -> Any:
        (again,), self.recorded = self.recorded or [], None
        return Again(self, again)


class Again:
    """What was recorded."""

    def __init__(self, model: Model, again: partial[Tensor]) -> None:
        self.model, self.again = model, again

    def run(self) -> None:
        self.model.replays += 1
        self.again()


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")  # of tokens for nothing
@pytest.mark.parametrize(
    "kv_dtype", [torch.float16, pytest.param(torch.int8, marks=pytest.mark.slow)]
)
def test_replayed_steps_give_what_each_step_alone_does(
    tiny_gguf: Path, kv_dtype: torch.dtype
) -> None:
    """Prompts and texts that decode, mixed as they come; the buffers of the first are replayed."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    ops = TritonOps(CPU, torch.float16, False)
    backend = one_object_backend(ops, kv_dtype, EagerExecutor)
    checkpoint = open_checkpoint(tiny_gguf)
    model: Any = Model(Decoder(checkpoint.config, checkpoint, backend))
    blocks = ROWS * 4
    caches = [KVCache(block_states(checkpoint.config), blocks, BLOCK, kv_dtype) for _ in range(2)]
    rows = Rows(ROWS, 4 * BLOCK, BLOCK, Rotaries(checkpoint.config))
    rows.tokens.random_(3, 290, generator=torch.Generator().manual_seed(seed))
    rows.block_tables[:] = torch.tensor(rng.sample(range(blocks), blocks)).view(ROWS, 4)
    eager = EagerExecutor(model, caches[0], 0, ops.prepare)
    replaying = CapturingExecutor(model, caches[1], ROWS, model, ops.prepare, tokens=16)
    done = [0] * ROWS
    for counts in ([11, 0, 0, 3], [1, 11, 0, 1], [1, 1, 12, 1]):
        picked = rng.sample([row for row in range(ROWS) if counts[row]], sum(map(bool, counts)))
        step = rows.step([(r, done[r], counts[r]) for r in picked], [1] * len(picked))
        for row in picked:
            done[row] += counts[row]
        want = eager.run(step).clone()
        got = replaying.run(step)
        assert got.shape == want.shape
        # Other tiles add in another order: a few roundings of float16 in two layers.
        assert torch.allclose(got, want, rtol=0, atol=0.01 * float(want.abs().max()))
        assert torch.equal(got.argmax(-1), want.argmax(-1))
    assert model.replays == 3


def test_a_token_of_each_row_that_decodes_is_listed(tiny_gguf: Path) -> None:
    rows = Rows(ROWS, 4 * BLOCK, BLOCK, Rotaries(open_checkpoint(tiny_gguf).config))
    step = rows.step([(0, 3, 1), (1, 0, 5), (2, 7, 1), (3, 2, 2)], [1, 1, 1, 1])
    there = DeviceStep.of(step, CPU, False)
    assert there.singles is not None and there.singles.tolist() == [0, 6, -1, -1]
    assert there.lines_of(4).tolist()[:3] == [[5, 1, 4, 1], [1, 4, 0, 1], [7, 2, 2, 3]]
    # As many lines as any step of nine tokens in four rows may need.
    assert there.lines_of(4).shape[0] == 9 // 4 + 4
    decode = rows.step([(0, 3, 1), (2, 7, 1)], None)
    assert DeviceStep.of(decode, CPU, False).singles is None
    exact = DeviceStep.of(step, CPU, True)
    assert exact.singles is None and exact.max_length == 256 and exact.key != there.key
