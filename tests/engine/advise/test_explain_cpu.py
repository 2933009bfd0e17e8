"""What the CPU's kernels do with each layer, against what a loaded engine holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from halfbyte import Engine
from halfbyte.choices import BackendName
from halfbyte.engine.advise.explain import ExplainedRow, explain_cpu
from halfbyte.engine.backends.cpu import make_cpu_ops
from halfbyte.engine.backends.cpu_c import NEVER, CompiledOps
from halfbyte.engine.backends.cpu_torch import TorchOps
from halfbyte.engine.config import EngineConfig
from halfbyte.engine.models.attention import AttentionBlock
from halfbyte.engine.models.mlp import MlpBlock
from halfbyte.kernels import cpu
from halfbyte.kernels.cpu.enums import NumberType, TileCodes, TileValues
from halfbyte.kernels.cpu.pack import TiledLinear
from halfbyte.loaders import open_checkpoint

FIXTURES = Path(__file__).parents[2] / "fixtures"
DENSE = {TileCodes.F32, TileCodes.F16, TileCodes.BF16}
MODELS = [
    "gguf-q4_0-spm-llama/model.gguf",
    "gguf-q3_k-q4_1-gemma3/model.gguf",
    "bnb-nf4-dq-llama",
    "ct-fp8-dynamic-gemma3",
    "ct-w8a8-dyn-asym-llama",
    "gptq-v1-3b-g32-sym-mistral",
    "gptq-v1-4b-dynamic-lmhead-llama",
    "fp16-llama-spm",
]


def kind_of(packed: TiledLinear) -> str:
    """Kind that a packed weight shows; super-blocks alone show that they are blocks."""
    if packed.codes in DENSE:
        return "dense"
    if packed.values != TileValues.GROUP:
        return "blocks"
    if packed.codes == TileCodes.E4M3:
        return "float8"
    return "table" if packed.table is not None else "integers"


def rows_of(path: Path, ops: CompiledOps | TorchOps) -> list[ExplainedRow]:
    checkpoint = open_checkpoint(path)
    try:
        return explain_cpu(checkpoint, ops)
    finally:
        checkpoint.close()


@pytest.mark.parametrize("name", MODELS)
def test_the_kind_is_the_one_that_the_engine_packs(name: str) -> None:
    with Engine(FIXTURES / name, max_batch=1, max_context=64) as engine:
        ops: Any = engine._loop.runner.model.backend.ops
        if not isinstance(ops, CompiledOps):
            pytest.skip("no C compiler")
        rows = rows_of(FIXTURES / name, ops)
        model = engine._loop.runner.model
        attention, mlp = model.blocks[:2]
        assert isinstance(attention, AttentionBlock) and isinstance(mlp, MlpBlock)
        held: dict[str, Any] = {"lm_head": model.head, "down_proj": mlp.mlp.down}
        held["o_proj"] = attention.o
        told = {
            row.module: row
            for row in rows
            if row.shape is not None and (not row.layers or 0 in row.layers)
        }
        for module, packed in held.items():
            family = told[module].family
            if family == "blocks" and packed.values == TileValues.GROUP:
                # Small blocks have the same tiles as canonical codes with halves for scales.
                assert packed.span == 32 and packed.number == NumberType.F16, module
            else:
                assert kind_of(packed) == family, module
            assert told[module].shape == packed.shape


def test_rows_say_when_the_weights_are_read_and_why_not_otherwise() -> None:
    ops = make_cpu_ops(EngineConfig())
    if not isinstance(ops, CompiledOps):
        pytest.skip("no C compiler")
    path = FIXTURES / "fp16-llama-spm"
    for limit, kernels in ((NEVER, ["direct", "panel"]), (24, ["direct", "panel", "gemm"])):
        ops.gemm_rows = limit
        rows = [row for row in rows_of(path, ops) if row.module == "o_proj"]
        assert [row.kernel for row in rows] == kernels
        assert [row.m for row in rows] == [8, min(limit - 1, 1024), 1024][: len(rows)]
        assert all(row.rejected for row in rows)
    attention = [row for row in rows_of(path, ops) if row.module == "attention"]
    assert [row.kernel for row in attention] == ["split", "split", "run"]


def test_rounded_products_read_codes_as_they_lie_for_more_rows() -> None:
    ops = make_cpu_ops(EngineConfig())
    if not isinstance(ops, CompiledOps):
        pytest.skip("no C compiler")
    source = (Path(cpu.__file__).parent / "integer.c").read_text()
    wide, narrow = re.findall(r"DIRECT_ROWS = LANES == 16 \? (\d+) : (\d+)", source)[0]
    few = int(wide if ops.library.lanes == 16 else narrow)
    rows = [
        r for r in rows_of(FIXTURES / "gguf-q4_0-spm-llama/model.gguf", ops) if r.module == "o_proj"
    ]
    assert [(row.kernel, row.m) for row in rows] == (
        [("direct", 15), ("tiles", 1024)] if ops.library.amx else [("direct", few), ("panel", 1024)]
    )


@pytest.mark.parametrize(
    ("name", "module", "activations"),
    [
        ("ct-mixed-w4a16-w8a8-phi3", "down_proj", "float"),
        ("ct-mixed-w4a16-w8a8-phi3", "o_proj", "int8-token"),
        ("ct-w8a8-static-llama", "o_proj", "int8-tensor"),
        ("ct-fp8-dynamic-gemma3", "o_proj", "e4m3-token"),
        ("ct-fp8-dynamic-gemma3", "lm_head", "float"),
    ],
)
@pytest.mark.parametrize("backend", ["cpu_c", "cpu_torch"])
def test_rows_say_how_inputs_are_rounded(
    name: str, module: str, activations: str, backend: BackendName
) -> None:
    """Floats are asked for; what a format itself rounds stays rounded."""
    if backend == "cpu_c" and not isinstance(make_cpu_ops(EngineConfig()), CompiledOps):
        pytest.skip("no C compiler")
    ops = make_cpu_ops(EngineConfig(backend=backend, activations="float"))
    found = {row.activations for row in rows_of(FIXTURES / name, ops) if row.module == module}
    assert found == {activations}


def test_a_dense_matrix_takes_floats_whatever_is_asked_for() -> None:
    ops = make_cpu_ops(EngineConfig())
    if not isinstance(ops, CompiledOps):
        pytest.skip("no C compiler")
    ops.activations = "int8-block32"
    rows = rows_of(FIXTURES / "gguf-q5-bf16-ropefreqs-llama" / "model.gguf", ops)
    said = {(row.family == "dense", row.activations) for row in rows if row.shape is not None}
    assert said == {(True, "float"), (False, "int8-block32")}


def test_without_the_c_kernels_torch_is_named() -> None:
    ops = make_cpu_ops(EngineConfig(backend="cpu_torch"))
    rows = rows_of(FIXTURES / "gptq-v1-4b-g128-sym-llama", ops)
    assert {row.kernel for row in rows} == {"torch"}
    assert {row.family for row in rows} == {"int4", "dense", "attention"}
