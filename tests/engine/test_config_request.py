"""Options and sampling parameters: what is out of range is refused by name, with the value."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
import torch

from halfbyte.engine.config import EngineConfig, make_config
from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import (
    Completion,
    Delta,
    FinishReason,
    PromptScore,
    TokenEvent,
    Usage,
)
from halfbyte.errors import ConfigError, RequestError

NAN, INF = math.nan, math.inf

CONFIG_REFUSED: dict[str, list[Any]] = {
    "device": ["tpu", "", None, 3, "CPU"],
    "dtype": ["int8", "fp32", None, "Float32"],
    "kv_dtype": ["int4", "fp8", "16bit", None, "Int8", torch.float16],
    "backend": ["triton", "cpu", "cpu_native", "torch", None],
    "activations": ["int8", "int8-block", "float32", "", None, 8],
    "max_context": [-1, 1.5, "512", True, 1 << 25, None],
    "max_batch": [0, -3, 4097, 2.0, "8", False],
    "max_batch_tokens": [0, -1, (1 << 20) + 1, None, 64.0],
    "block_size": [0, 1, 8, 48, 256, -16, "64", 64.0, True, None],
    "kv_tokens": [-1, 0.5, "1", None],
    "prefix_cache": [0, 1, "yes", None],
    "exact": [1, "true", None],
    "threads": [-1, 1025, 1.0, "2", None, True],
    "overlap": ["no", 1],
    "packed_cache": [0, 1, "yes", None],
    "seed": [-1, 1 << 63, 1.0, "7", True],
}
CONFIG_ACCEPTED: dict[str, list[Any]] = {
    "device": ["auto", "cpu"],
    "dtype": ["auto", "float32", "bfloat16", "float16"],
    "kv_dtype": ["auto", "float32", "float16", "bfloat16", "int8"],
    "backend": ["auto", "cpu_c", "cpu_torch", "reference"],
    "activations": ["auto", "float", "int8-block32", "int8-token"],
    "max_context": [0, 1, 1 << 24],
    "max_batch": [1, 1024],
    "max_batch_tokens": [32, 1 << 20],
    "block_size": [16, 32, 64, 128],
    "kv_tokens": [0, 1, 1 << 40],
    "threads": [0, 1, 1024],
    "seed": [None, 0, (1 << 63) - 1],
}
PARAMS_REFUSED: dict[str, list[Any]] = {
    "temperature": [-1, -1e-9, 100.1, NAN, INF, "1", None, True],
    "top_k": [-2, 1.5, "5", None, True, 1 << 31],
    "top_p": [-0.1, -5e-324, 1.0001, 2, NAN, None, "0.5", True],
    "min_p": [-0.1, 1.1, NAN, None, False],
    "repetition_penalty": [0, -1, 1e-300, 1e-38, 0.0099, 101, 1e300, NAN, INF, None],
    "presence_penalty": [-2.1, 2.1, 1e38, -1e308, NAN, None],
    "frequency_penalty": [-2.1, 2.1, NAN, "0"],
    "seed": [1 << 63, -(1 << 63) - 1, 1.5, "1", True],
    "max_tokens": [-1, 1.5, "16", True, 1 << 31],
    "min_tokens": [-1, 0.5, None, True],
    "stop": ["", [""], ["a", ""], [3], 5, None, ["x" * 1025], ["a"] * 65, [b"a"], [None]],
    "stop_token_ids": [[-1], ["a"], [1.5], [True], 7, None, [1 << 32]],
    "ignore_eos": [1, "yes", None],
}
PARAMS_ACCEPTED: dict[str, list[Any]] = {
    "temperature": [0, 0.0, 5e-324, 1e-300, 1, 100],
    "top_k": [-1, 0, 1, (1 << 31) - 1],
    "top_p": [0, 0.0, 5e-324, 1e-9, 1, 0.5],
    "min_p": [0, 1, 0.1],
    "repetition_penalty": [0.01, 1, 100],
    "presence_penalty": [-2, 0, 2],
    "frequency_penalty": [-2, 0, 2],
    "seed": [None, 0, -2, -(1 << 63), (1 << 63) - 1],
    "max_tokens": [None, 0, 1, (1 << 31) - 1],
    "min_tokens": [0, 5],
    "stop": ["x", (), ("a", "b"), ["x" * 1024], ["a"] * 64],
    "stop_token_ids": [(), [0, 5]],
    "ignore_eos": [True, False],
}


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}={value!r:.20}")
        for name, values in table.items()
        for value in values
    ]


@pytest.mark.parametrize(("name", "value"), cases(CONFIG_REFUSED))
def test_config_refuses(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig(**{name: value})
    assert name in str(caught.value) and f"{value!r:.40}" in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(("name", "value"), cases(CONFIG_ACCEPTED))
def test_config_accepts(name: str, value: Any) -> None:
    options: dict[str, Any] = {"max_batch_tokens": 2048}
    options[name] = value
    assert getattr(EngineConfig(**options), name) == value


def test_former_names_are_told_the_new_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        make_config({"backend": "cpu_native"})
    assert caught.value.hint == "use cpu_c, or cpu_torch for torch's own kernels"
    with pytest.raises(ConfigError, match="unknown engine option 'native'") as caught:
        make_config({"native": False})
    assert "backend='cpu_torch'" in caught.value.hint


def test_a_batch_must_fit_a_step() -> None:
    with pytest.raises(ConfigError, match=r"max_batch 64 .* max_batch_tokens 63"):
        EngineConfig(max_batch=64, max_batch_tokens=63)
    EngineConfig(max_batch=64, max_batch_tokens=64)


def test_unknown_options_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="tensor_parallel") as caught:
        make_config({"tensor_parallel": 2})
    assert "max_batch" in caught.value.hint
    with pytest.raises(ConfigError, match=r"max_contxt.*did you mean max_context"):
        make_config({"max_contxt": 8})
    assert make_config({"max_batch": 3}).max_batch == 3


def test_every_field_is_documented() -> None:
    for kind in (EngineConfig, SamplingParams, Completion, Delta, TokenEvent):
        text = kind.__doc__ or ""
        for item in fields(kind):
            assert f"{item.name}:" in text, f"{kind.__name__}.{item.name} has no sentence"


@pytest.mark.parametrize(("name", "value"), cases(PARAMS_REFUSED))
def test_sampling_refuses(name: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name and name in str(caught.value)
    assert "expected" in str(caught.value) or "at most" in str(caught.value)


@pytest.mark.parametrize(("name", "value"), cases(PARAMS_ACCEPTED))
def test_sampling_accepts(name: str, value: Any) -> None:
    params = SamplingParams(**{name: value})
    if name == "stop":
        assert params.stop == ((value,) if isinstance(value, str) else tuple(value))
    elif name == "stop_token_ids":
        assert params.stop_token_ids == tuple(value)
    else:
        assert getattr(params, name) == value


def test_an_endless_number_is_refused_like_any_other() -> None:
    """Python itself refuses to write it out."""
    for name in ("temperature", "top_k", "seed"):
        with pytest.raises(RequestError, match=f"{name} is a whole number of 33220 bits"):
            SamplingParams(**{name: 10**10000})  # type: ignore[arg-type]


def test_the_seed_minus_one_draws_one() -> None:
    assert SamplingParams(seed=-1).seed is None


@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 9e-7}, {"top_p": 0}])
def test_greedy(params: dict[str, Any]) -> None:
    assert SamplingParams(**params).greedy and SamplingParams(**params).heat == 0.0
    assert not SamplingParams(temperature=1e-6, top_p=1e-9).greedy


def test_min_tokens_may_not_pass_max_tokens() -> None:
    with pytest.raises(RequestError, match=r"min_tokens is 6.* max_tokens 5") as caught:
        SamplingParams(min_tokens=6, max_tokens=5)
    assert caught.value.param == "min_tokens"
    assert SamplingParams(min_tokens=5, max_tokens=5).min_tokens == 5
    assert SamplingParams(min_tokens=600, max_tokens=None).min_tokens == 600


def test_huge_values_do_not_flood_the_message() -> None:
    for bad in ("x" * 10**6, ["y" * 10**6], 10**400):
        with pytest.raises((RequestError, ConfigError)) as caught:
            SamplingParams(temperature=bad)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 500


def test_parameters_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        SamplingParams().temperature = 2.0  # type: ignore[misc]


def test_greedy_is_temperature_zero() -> None:
    assert SamplingParams(temperature=0).greedy and not SamplingParams(temperature=0.01).greedy


def test_completion_as_json() -> None:
    done = Completion("hé", [1, 2], FinishReason.LENGTH, Usage(5, 2, 4), seed=9)
    data = json.loads(json.dumps(done.to_dict()))
    assert (
        data["finish_reason"] == "length" and data["text"] == "hé" and data["token_ids"] == [1, 2]
    )
    assert data["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "cached_tokens": 4,
        "total_tokens": 7,
    }
    assert data["timings"].keys() >= {"queue_s", "ttft_s", "prefill_tok_s", "decode_tok_s"}
    assert data["stop_reason"] is None and data["seed"] == 9 and data["error"] is None


def test_score_total_leaves_out_the_first_token() -> None:
    score = PromptScore([1, 2, 3], [None, -1.5, -0.25], [None, 2, 2], [None, -1.5, -0.1])
    assert score.total == -1.75
