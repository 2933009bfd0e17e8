"""Batches that stop in front of matrices, and what waits on disk meanwhile."""

from __future__ import annotations

import os
import random
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from moments_support import moments_bound
from torch import Tensor

from halfbyte.engine.config import EngineConfig
from halfbyte.errors import ConfigError, QuantizeError
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders import open_checkpoint
from halfbyte.quantize import walk
from halfbyte.quantize.deciding import Inputs, Multiply, PendingLinear, Traveller, travel_together
from halfbyte.quantize.hessian import Hessian
from halfbyte.quantize.methods.base import UniformCodes
from halfbyte.quantize.methods.nearest import NearestQuantizer
from halfbyte.quantize.pipeline import quantize_model
from halfbyte.quantize.smoothing import AWQScales
from halfbyte.quantize.spill import Spill
from halfbyte.quantize.walk import Walk
from halfbyte.quantize.windows import Windows

FIXTURES = Path(__file__).parents[1] / "fixtures"


class Products:
    """Ops of which only products are asked for."""

    def linear(self, x_TK: Tensor, weight: Any, out: Tensor | None = None) -> Tensor:
        return x_TK + 1

    def flush(self) -> None:
        pass


@pytest.fixture
def spill(tmp_path: Path) -> Spill:
    return Spill(tmp_path)


def journey(x_TD: Tensor, stops: list[PendingLinear]) -> Callable[[Any], None]:
    def go(ops: Any) -> None:
        for pending in stops:
            x_TD.add_(ops.linear(x_TD * 2, pending))

    return go


@pytest.mark.parametrize("on_disk", [False, True])
def test_every_matrix_is_decided_once_with_the_inputs_of_all_that_come(
    spill: Spill, on_disk: bool
) -> None:
    """Batches that leave matrices out, as tokens of a batch may all go to other experts."""
    matrices = [PendingLinear((f"m{i}",), (8, 8), False, i) for i in range(6)]
    routes = [[p for p in matrices if random.random() < 0.6] for _ in range(5)]
    # 1300 x 8 floats lie over whole pages, wherever they begin.
    begin = [torch.randn(1300, 8) for _ in routes]
    want = [x.clone() for x in begin]
    for x, route in zip(want, routes, strict=True):
        for pending in route:
            x += 10.0 * pending.place + 2 * x
    decided: list[int] = []

    def decide(pending: PendingLinear, inputs: Inputs) -> Multiply:
        coming = [i for i, route in enumerate(routes) if pending in route]
        assert inputs.count == 1300 * len(coming)
        sums = [float(x.sum(dtype=torch.float64)) for x in inputs]
        assert sums == [float(x.sum(dtype=torch.float64)) for x in inputs]  # more than once
        assert len(sums) == len(coming)
        decided.append(pending.place)
        return lambda x: x + 10.0 * pending.place

    travellers = [
        Traveller(journey(x, route), Products(), x, spill if on_disk else None)  # type: ignore
        for x, route in zip(begin, routes, strict=True)
    ]
    travel_together(travellers, decide)
    assert decided == sorted({p.place for route in routes for p in route})
    for got, expected in zip(begin, want, strict=True):
        assert torch.equal(got, expected)


def test_a_failure_ends_all_batches_and_reaches_the_caller() -> None:
    matrix = PendingLinear(("m",), (8, 8), False)
    before = threading.active_count()

    def made() -> list[Traveller]:
        inputs = [torch.ones(2, 8) for _ in range(3)]
        return [Traveller(journey(x, [matrix]), Products(), x, None) for x in inputs]  # type: ignore

    def refuse(pending: PendingLinear, inputs: Inputs) -> Multiply:
        raise QuantizeError("no")

    def damaged(pending: PendingLinear, inputs: Inputs) -> Multiply:
        def product(x_TK: Tensor) -> Tensor:
            raise ValueError("in the middle of a batch")

        return product

    with pytest.raises(QuantizeError, match="no"):
        travel_together(made(), refuse)
    with pytest.raises(ValueError, match="in the middle"):
        travel_together(made(), damaged)
    assert threading.active_count() == before


def resident(tensor: Tensor) -> int:
    """Bytes of the mapping around a tensor that are in memory."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        ends = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if ends is not None:
            begin, end = (int(x, 16) for x in ends.groups())
            found = begin <= tensor.data_ptr() < end
        elif found and line.startswith("Rss:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no mapping")


def test_a_spilled_tensor_takes_no_memory_and_comes_back(spill: Spill, tmp_path: Path) -> None:
    # So large that malloc gives it a mapping of its own, whatever was freed before.
    whole = torch.randn(48 << 20 >> 2)
    part = whole[1 : (40 << 20 >> 2) + 1].view(-1, 512)[:, :500]
    kept, around = part.clone(), (float(whole[0]), float(whole[-1]))
    before = resident(whole)
    spilled = spill.put(part)
    # The last rows' ends and the pages at both ends stay.
    assert resident(whole) < before - (39 << 20)
    with spilled.looked_at() as seen:
        assert torch.equal(seen, kept)
    assert resident(whole) < before - (39 << 20)
    spilled.back()
    assert torch.equal(part, kept)
    assert (float(whole[0]), float(whole[-1])) == around
    # The place in the file serves again, and the file has no name.
    size = os.fstat(spill._file.fileno()).st_size
    spill.put(part).back()
    assert os.fstat(spill._file.fileno()).st_size == size
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said(spill: Spill, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(QuantizeError, match=r"No space left on device.*without --spill"):
        spill.put(torch.zeros(5000))


class Spy:
    """Rounds to nearest, and keeps the statistics that it was given."""

    calibrated = True

    def __init__(self) -> None:
        self.seen: dict[str, Hessian] = {}

    def quantize(self, name: str, weight_NK: Tensor, hessian: Hessian | None) -> QuantizedLinear:
        assert hessian is not None
        self.seen[name] = hessian
        return NearestQuantizer(UniformCodes(4, 32)).quantize(name, weight_NK, None)


@pytest.mark.parametrize("name", ["fp16-llama-spm", "bnb-nf4-gemma2"])
def test_batches_and_the_disk_change_nothing(
    name: str, spill: Spill, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(FIXTURES / name)
    vocab = checkpoint.config.vocab_size
    windows = Windows(tuple(tuple(random.randrange(3, vocab) for _ in range(24)) for _ in range(5)))
    tokens, original = [0], Walk.__init__

    def cut(self: Walk, *args: Any, **more: Any) -> None:
        original(self, *args, batch=tokens[0], **more)

    monkeypatch.setattr(Walk, "__init__", cut)

    def made(batch: int, where: Spill | None) -> dict[str, Hessian]:
        tokens[0], spy = batch, Spy()
        scales = AWQScales(4, 32, True)
        model = quantize_model(checkpoint, spy, windows, smoother=scales, spill=where)
        scaled.append(len(model.weights) > len(spy.seen))
        return spy.seen

    scaled: list[bool] = []
    some, spilled = made(48, None), made(48, spill)
    assert all(scaled)
    assert some.keys() == spilled.keys()
    for matrix, hessian in some.items():
        assert torch.equal(hessian.sum_KK, spilled[matrix].sum_KK)
        assert torch.equal(hessian.sample_SK, spilled[matrix].sample_SK)
    # Sums of batches have another order, and other panels of inputs that are rounded together.
    # Without scales, which follow from them, the inputs themselves are the same.
    monkeypatch.setattr(AWQScales, "scale", lambda *_: None)
    whole, some = made(10_000, None), made(48, None)
    for matrix, hessian in whole.items():
        other = some[matrix]
        assert hessian.count == other.count
        assert torch.equal(hessian.sample_SK, other.sample_SK)
        assert len(hessian.sample_SK) == hessian.count  # all of the inputs
        off = (hessian.sum_KK - other.sum_KK).abs()
        assert bool((off <= 2 * moments_bound(hessian.sample_SK)).all()), matrix
    checkpoint.close()


def test_a_sample_is_spread_over_all_inputs_however_they_come() -> None:
    x = torch.randn(5000, 8)
    whole = Hessian("w", 8)
    whole.add(x)
    parts = Hessian("w", 8, expected=5000)
    cuts = sorted(random.randrange(5001) for _ in range(6))
    for begin, end in zip([0, *cuts], [*cuts, 5000], strict=True):
        parts.add(x[begin:end])
    assert torch.equal(whole.sample_SK, parts.sample_SK)
    assert len(parts.sample_SK) == 1000


def test_memory_of_other_devices_is_not_spilled(
    spill: Spill, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(FIXTURES / "fp16-llama-spm")
    backend = replace(walk.make_backend(EngineConfig()), device=torch.device("meta"))
    monkeypatch.setattr(walk, "make_backend", lambda config: backend)
    with pytest.raises(ConfigError, match="--spill moves memory of the host"):
        Walk(checkpoint, EngineConfig(), [(1, 2, 3)], spill=spill)
    checkpoint.close()
