"""Types of kept keys and values: which backend takes which, what they cost in memory, and that
every backend means the same by them.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from halfbyte import Engine, SamplingParams
from halfbyte.engine.advise.capacity import PlannedKV, measure
from halfbyte.engine.backends import make_backend
from halfbyte.engine.config import EngineConfig
from halfbyte.engine.models.attention import AttentionBlock
from halfbyte.errors import ConfigError
from halfbyte.kernels.cpu.build import find_compiler
from halfbyte.kernels.cpu.forms import chosen_forms
from halfbyte.loaders import open_checkpoint

HAS_C = find_compiler() is not None and bool(chosen_forms())
needs_c = pytest.mark.skipif(not HAS_C, reason="no C kernels")
QWEN3 = Path(__file__).parents[2] / "fixtures" / "autoround-gptq-4b-g32-sym-qwen3"
TYPES: tuple[PlannedKV, ...] = ("float32", "float16", "bfloat16", "int8")


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        pytest.param(
            {"backend": "cpu_c"},
            torch.float16,
            marks=pytest.mark.skipif(not HAS_C, reason="no C kernels"),
        ),
        pytest.param(
            {"backend": "cpu_c", "dtype": "float32"},
            torch.float32,
            marks=pytest.mark.skipif(not HAS_C, reason="no C kernels"),
        ),
        ({"backend": "cpu_torch"}, torch.float32),
        ({"backend": "reference"}, torch.float32),
        ({"backend": "reference", "dtype": "bfloat16"}, torch.bfloat16),
        ({"backend": "interpreter"}, torch.float16),
        ({"backend": "interpreter", "dtype": "bfloat16"}, torch.bfloat16),
    ],
)
def test_what_each_backend_takes_by_itself(options: dict[str, Any], dtype: torch.dtype) -> None:
    assert make_backend(EngineConfig(**options)).kv_dtype == dtype


def test_the_triton_kernels_refuse_what_they_do_not_keep() -> None:
    for dtype, wanted in (("float16", "bfloat16"), ("bfloat16", "float32")):
        asked: dict[str, Any] = {"backend": "interpreter", "dtype": dtype, "kv_dtype": wanted}
        with pytest.raises(ConfigError, match=f"kv_dtype is '{wanted}', but the Triton") as caught:
            make_backend(EngineConfig(**asked))
        assert "kv_dtype='auto'" in caught.value.hint and "'int8'" in caught.value.hint
    same = EngineConfig(backend="interpreter", dtype="bfloat16", kv_dtype="bfloat16")
    assert make_backend(same).kv_dtype == torch.bfloat16
    for kept in (torch.int8, torch.float8_e4m3fn):
        asked = {"backend": "interpreter", "kv_dtype": str(kept).removeprefix("torch.")}
        assert make_backend(EngineConfig(**asked)).kv_dtype == kept


@needs_c
def test_the_c_kernels_refuse_float8() -> None:
    with pytest.raises(ConfigError, match="'float8_e4m3fn', in which the C kernels do not") as told:
        make_backend(EngineConfig(backend="cpu_c", kv_dtype="float8_e4m3fn"))
    assert "'int8'" in told.value.hint


@pytest.mark.parametrize(
    ("codes", "exact"), [("int8", False), ("int8", True), ("float8_e4m3fn", False)]
)
def test_the_triton_kernels_mean_the_same_by_codes(codes: str, exact: bool) -> None:
    """A prompt in two chunks, then two texts that decode."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    ids = random.Random(seed).choices(range(3, 290), k=28)
    found = {}
    for name, backend, kv_dtype in (
        ("want", "reference", codes),
        ("plain", "reference", "float16"),
        ("got", "interpreter", codes),
    ):
        options: Any = {"backend": backend, "kv_dtype": kv_dtype, "exact": exact}
        options |= {"dtype": "float16", "max_batch": 4, "max_batch_tokens": 24}
        with Engine(QWEN3, **options) as engine:
            assert engine.memory.kv_dtype == kv_dtype
            found[name] = engine.logits(ids).float()
            if backend == "interpreter":
                params = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
                both = engine.generate([ids, ids[:7]], params)
                assert [len(one.token_ids) for one in both] == [2, 2]
    apart = {name: float((x - found["want"]).norm(dim=-1).median()) for name, x in found.items()}
    # Another type would be 1 times as far. In 16 bits a key between two codes often falls to the
    # other side, which is a part of the way: 0.39 to 0.44 in eight draws.
    assert apart["got"] < 0.7 * apart["plain"]


@pytest.mark.parametrize("kv_dtype", TYPES)
def test_every_backend_means_the_same(tiny_gguf: Path, kv_dtype: PlannedKV) -> None:
    """Logits from keys of another type differ far more than those of two backends do."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    ids = random.Random(seed).choices(range(3, 600), k=150)
    found = {}
    for backend in ("reference", "cpu_torch", "cpu_c")[: 2 + HAS_C]:
        # In float32 weights and sums are the same to a few last places.
        with Engine(tiny_gguf, backend=backend, dtype="float32", kv_dtype=kv_dtype) as engine:
            assert engine.memory.kv_dtype == kv_dtype
            found[backend] = engine.logits(ids)
    want = found.pop("reference")
    with Engine(tiny_gguf, backend="reference", dtype="float32") as engine:
        plain = engine.logits(ids)

    def apart(x: Tensor, y: Tensor) -> float:
        """Of the middle position: a key between two codes may fall to either side, and what
        follows from it in this sharp little model can move single positions as far as a type."""
        return float((x - y).norm(dim=-1).median())

    moved = apart(want, plain)
    assert (moved > 0) == (kv_dtype != "float32")
    for name, got in found.items():
        # Another type would be 1 times as far; 450 draws of a text gave at most 0.15.
        near = max(0.5 * moved, 2e-5 * float(plain.norm(dim=-1).median()))
        assert apart(got, want) < near, name


@pytest.mark.parametrize("kv_dtype", TYPES)
def test_the_plan_counts_what_is_allocated(tiny_gguf: Path, kv_dtype: PlannedKV) -> None:
    checkpoint = open_checkpoint(tiny_gguf)
    planned = measure(checkpoint, kv_dtype, "cpu").kv_token
    checkpoint.close()
    with Engine(tiny_gguf, kv_dtype=kv_dtype, kv_tokens=1000, max_context=512) as engine:
        plan, states = engine.memory, engine._loop.runner.kv.states
        held = sum(kept.nbytes for state in states for kept in state.tokens)
        assert plan.bytes_per_token == planned
        assert held == plan.kv_bytes == planned * plan.blocks * plan.block_size


@needs_c
def test_values_too_large_for_float16_end_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tiny_gguf: Path
) -> None:
    """Keys and values of about 1e6: no numbers in float16, and ordinary ones in bfloat16."""
    load = AttentionBlock.load.__func__  # type: ignore[attr-defined]

    def large(cls: Any, *arguments: Any) -> Any:
        block = load(cls, *arguments)
        block.norm *= 1e6
        return block

    monkeypatch.setattr(AttentionBlock, "load", classmethod(large))
    errors = {}
    for kv_dtype in ("float16", "bfloat16"):
        with Engine(tiny_gguf, backend="cpu_c", kv_dtype=kv_dtype) as engine:
            (done,) = engine.generate([[7, 8, 9, 10]], max_tokens=2, ignore_eos=True)
            errors[kv_dtype] = done.error
    assert "kv_dtype='bfloat16'" in (errors["float16"] or "")
    assert errors["bfloat16"] is None
