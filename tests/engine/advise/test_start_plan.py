"""The plan of a start: what the engine then has, and refused where the engine is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from halfbyte.engine.advise.start_plan import plan_start
from halfbyte.engine.engine import Engine
from halfbyte.errors import HalfbyteError

FIXTURES = Path(__file__).parents[2] / "fixtures"
GGUF, FOLDER = FIXTURES / "gguf-q4_0-spm-llama" / "model.gguf", FIXTURES / "fp16-llama-spm"


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (GGUF, {"max_batch": 3, "max_context": 200, "kv_dtype": "int8"}),
        (FOLDER, {"kv_tokens": 1000, "quantize": "w4a16", "max_batch_tokens": 77}),
        (FOLDER, {"backend": "reference", "max_batch": 1}),
    ],
)
def test_the_engine_is_as_planned(model: Path, options: dict[str, Any]) -> None:
    plan = plan_start(model, options)
    with Engine(model, threads=1, **options) as engine:
        assert replace(engine.memory, free_bytes=0) == replace(plan.memory, free_bytes=0)
        assert (plan.name, plan.backend) == (engine.name, engine.backend)
        assert plan.architecture == engine.model_config.architecture
        assert plan.batch == engine.config.max_batch
        assert plan.step_tokens == engine.config.max_batch_tokens
        report = engine.report
        assert plan.file_format == report.kind and plan.formats.keys() == report.formats.keys()
    assert list(plan.formats.values()) == sorted(plan.formats.values(), reverse=True)
    assert 0 < plan.weights < plan.least < plan.most == plan.least + plan.memory.kv_bytes


def test_rounding_on_load_is_planned() -> None:
    assert plan_start(FOLDER, {"quantize": "w4a16"}).weights < plan_start(FOLDER, {}).weights


@pytest.mark.parametrize(
    "options",
    [
        {"max_context": 1 << 20},
        {"kv_tokens": 1 << 39},
        {"activations": "int8-token"},
        {"backend": "cuda_triton", "device": "cpu"},
        {"max_batch": 0},
    ],
)
def test_what_the_engine_refuses_is_not_planned(options: dict[str, Any]) -> None:
    told = []
    for make in (plan_start, lambda model, fields: Engine(model, **fields)):
        with pytest.raises(HalfbyteError) as caught:
            make(FOLDER, options)
        told.append((type(caught.value), caught.value.message.split(", but")[0]))
    assert told[0] == told[1]
