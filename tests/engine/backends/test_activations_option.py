"""The option ``activations``: who honours which value, and what is refused with what remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from halfbyte import Engine
from halfbyte.choices import ActivationsName, BackendName, DType
from halfbyte.engine.backends import make_backend
from halfbyte.engine.backends.activations import check_activations, chosen_rule
from halfbyte.engine.config import EngineConfig
from halfbyte.errors import ConfigError, UnsupportedWeightError
from halfbyte.kernels import reference as ref
from halfbyte.loaders import open_checkpoint

FIXTURES = Path(__file__).parents[2] / "fixtures"
PERMUTED = FIXTURES / "gptq-v2-4b-g32-asym-actorder-qwen2"


def check(activations: ActivationsName, name: str) -> None:
    checkpoint = open_checkpoint(FIXTURES / name)
    try:
        check_activations(activations, checkpoint)
    finally:
        checkpoint.close()


@pytest.mark.parametrize(
    ("activations", "dtype", "rule"),
    [
        ("auto", "auto", None),
        ("auto", "float32", "float"),
        ("float", "auto", "float"),
        ("int8-block32", "auto", "int8-block32"),
        ("int8-block32", "float32", "int8-block32"),
        ("int8-token", "auto", "int8-token"),
    ],
)
def test_the_rule_that_a_run_asks_for(
    activations: ActivationsName, dtype: DType, rule: str | None
) -> None:
    for exact in (False, True):
        config = EngineConfig(activations=activations, dtype=dtype, exact=exact)
        assert chosen_rule(config) == chosen_rule(config, "avx2") == rule
        assert chosen_rule(config, "plain") == (rule or "float")


def test_the_c_kernels_get_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HALFBYTE_ISA", raising=False)
    asked: tuple[tuple[ActivationsName, str | None], ...] = (("auto", None), ("float", "float"))
    for activations, rule in asked:
        made: Any = make_backend(EngineConfig(device="cpu", activations=activations)).ops
        if made.name != "cpu_c":
            pytest.skip("no C compiler")
        own = "float" if made.library.form == "plain" else None
        assert made.activations == (rule or own)


@pytest.mark.parametrize(
    ("backend", "rule"),
    [
        ("cpu_torch", "int8-block32"),
        ("cpu_torch", "int8-token"),
        ("interpreter", "int8-block32"),
    ],
)
def test_backends_refuse_rules_that_they_lack_by_name(
    backend: BackendName, rule: ActivationsName
) -> None:
    make_backend(EngineConfig(backend=backend, activations="float"))
    with pytest.raises(ConfigError) as caught:
        make_backend(EngineConfig(backend=backend, activations=rule))
    assert caught.value.message == (
        f"activations is '{rule}', but backend '{backend}' does not round so"
    )
    assert "backend='reference'" in caught.value.hint


@pytest.mark.parametrize("name", ["ct-w8a8-dyn-asym-llama", "ct-w8a8-dyn-smoothquant-gptq-qwen2"])
def test_by_token_where_the_format_rounds_so(name: str) -> None:
    for activations in ("auto", "float", "int8-block32", "int8-token"):
        check(activations, name)


@pytest.mark.parametrize(
    ("name", "found", "remedy"),
    [
        ("fp16-llama-spm", "no matrix of", "use 'auto' or 'float', or quantize='w8a8'"),
        ("ct-w8a8-static-llama", "14 of 14 quantized matrices", "use 'auto' or 'float'"),
        ("ct-fp8-dynamic-gemma3", "14 of 14 quantized matrices", "use 'auto' or 'float'"),
    ],
)
def test_by_token_where_the_format_does_not(name: str, found: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=r"activations is 'int8-token'") as caught:
        check("int8-token", name)
    assert found in caught.value.message and name in caught.value.message
    assert remedy in caught.value.hint
    with pytest.raises(ConfigError, match=r"activations is 'int8-token'"):
        Engine(FIXTURES / name, activations="int8-token")


@pytest.mark.parametrize("name", ["gptq-v1-4b-g128-sym-llama", "ct-mixed-w4a16-w8a8-phi3"])
def test_by_token_where_a_run_chooses_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weight-only matrices are multiplied by the rule; those of W8A8 keep their format's own."""
    check("int8-token", name)
    chosen: list[int] = []
    real = ref.token_linear

    def spy(x: torch.Tensor, weight: Any, *rest: Any) -> torch.Tensor:
        assert weight.format.act is None
        chosen.append(1)
        return real(x, weight, *rest)

    monkeypatch.setattr(ref, "token_linear", spy)
    logits: dict[tuple[BackendName, ActivationsName], torch.Tensor] = {}
    runs: tuple[tuple[BackendName, ActivationsName], ...] = (
        *(("reference", "float"), ("reference", "int8-token")),
        *(("cpu_c", "int8-token"), ("interpreter", "int8-token")),
    )
    for backend, rule in runs:
        options: Any = {} if backend == "interpreter" else {"dtype": "float32"}
        with Engine(
            FIXTURES / name, backend=backend, activations=rule, max_context=64, **options
        ) as engine:
            logits[backend, rule] = engine.logits([1, 5, 9, 30]).float()
    assert chosen
    want, size = logits["reference", "int8-token"], logits["reference", "float"].abs().max()
    assert (want - logits["reference", "float"]).abs().max() > 1e-3 * size
    # float32 elsewhere; float16, which now and then changes a code.
    assert (logits["cpu_c", "int8-token"] - want).abs().max() < 1e-4 * size
    assert (logits["interpreter", "int8-token"] - want).abs().max() < 0.1 * size


def test_a_format_without_such_a_kernel_is_refused_by_name() -> None:
    path = next((FIXTURES / "gguf-q4_k-q6_k-qwen3").glob("*.gguf"))
    with pytest.raises(UnsupportedWeightError) as caught:
        Engine(path, backend="interpreter", activations="int8-token", max_context=64)
    assert "model.layers.0.self_attn.v_proj: activations is 'int8-token'" in caught.value.message
    assert "w4a8: codes of 6 bits" in caught.value.message
    assert "use activations='auto'" in caught.value.message


def test_rounding_on_load_makes_a_model_by_token() -> None:
    with Engine(
        FIXTURES / "fp16-llama-spm", quantize="w8a8", activations="int8-token", max_context=64
    ) as engine:
        assert engine.config.activations == "int8-token"


@pytest.mark.parametrize("name", ["fp16-llama-spm", "ct-w8a8-dyn-asym-llama"])
def test_blocks_that_apply_to_nothing_are_said(name: str, caplog: pytest.LogCaptureFixture) -> None:
    check("int8-block32", "gptq-v1-4b-g128-sym-llama")
    check("float", name)
    assert caplog.records == []
    check("int8-block32", name)
    (record,) = caplog.records
    assert "no weight-only quantized matrix" in record.getMessage()


def test_the_reference_honours_the_option_in_a_whole_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every quantized matrix, and no dense one, is multiplied by rounded inputs."""
    seen: list[tuple[int, ...]] = []
    real = ref.block_linear

    def spy(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(tuple(weight.shape))
        return real(x, weight, *rest)

    monkeypatch.setattr(ref, "block_linear", spy)
    logits = {}
    every: tuple[ActivationsName, ...] = ("auto", "float", "int8-block32")
    for activations in every:
        seen.clear()
        with Engine(
            PERMUTED, backend="reference", activations=activations, max_context=64
        ) as engine:
            logits[activations] = engine.logits([1, 5, 9, 30])
            config = engine.model_config
        # q, k and v, o, gate and up, down; the head of this model is dense.
        assert len(seen) == (4 * config.num_layers if activations == "int8-block32" else 0)
    assert torch.equal(logits["auto"], logits["float"])
    off = (logits["int8-block32"] - logits["float"]).abs().max() / logits["float"].abs().max()
    assert 0 < off < 0.1


def test_formats_of_their_own_rounding_do_not_change_with_the_option() -> None:
    found = []
    for activations in ("float", "int8-block32"):
        with Engine(
            FIXTURES / "ct-w8a8-dyn-asym-llama",
            backend="reference",
            activations=activations,
            max_context=64,
        ) as engine:
            found.append(engine.logits([1, 5, 9, 30]))
    assert torch.equal(*found)
