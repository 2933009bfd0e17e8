"""Quantized folders are refused by the name of their method, whatever the place of the config."""

from __future__ import annotations

import pytest
from loader_gguf_files import refuses
from loader_hf_files import TINY_SHAPES, tiny_folder

from halfbyte.errors import UnsupportedModelError
from halfbyte.loaders import open_checkpoint

TODAY = "what loads today: GGUF files"


@pytest.mark.parametrize(
    "config,method",
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "AWQ"}, "awq"),
        ({"method": "auto-round"}, "auto-round"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"bits": 4}, "unknown"),
    ],
)
def test_config_key(tmp_path, config, method):
    folder = tiny_folder(tmp_path / "m", {"quantization_config": config})
    refuses(
        lambda: open_checkpoint(folder),
        UnsupportedModelError,
        f"config.json quantization_config: the weights are quantized with {method}, which is not",
        TODAY,
    )


def test_other_places_in_the_config(tmp_path):
    for key, value in {
        "compression_config": {"quant_method": "compressed-tensors"},
        "text_config": {"quantization_config": {"quant_method": "gptq"}},
    }.items():
        folder = tiny_folder(tmp_path / key, {key: value})
        refuses(lambda f=folder: open_checkpoint(f), UnsupportedModelError, f"config.json {key}")


@pytest.mark.parametrize(
    "stem,content,method",
    [
        ("quantize_config", {"bits": 4, "group_size": 128}, "gptq"),
        ("quant_config", {"w_bit": 4}, "awq"),
        ("quantization_config", {"quant_method": "auto-round"}, "auto-round"),
        ("hf_quant_config", {"producer": {"name": "modelopt"}}, "modelopt"),
    ],
)
def test_side_files(tmp_path, stem, content, method):
    folder = tiny_folder(tmp_path / "m", **{stem: content})
    refuses(
        lambda: open_checkpoint(folder),
        UnsupportedModelError,
        rf"{stem}\.json: the weights are quantized with {method}",
    )


@pytest.mark.parametrize(
    "name,method",
    [
        ("model.layers.0.mlp.up_proj.qweight", "gptq or awq"),
        ("model.layers.0.mlp.up_proj.weight_packed", "compressed-tensors"),
        ("model.layers.0.mlp.up_proj.SCB", "bitsandbytes 8 bit"),
        (
            "model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4",
            "bitsandbytes 4 bit",
        ),
    ],
)
def test_quantized_tensors_without_a_config(tmp_path, name, method):
    folder = tiny_folder(tmp_path / "m", shapes=TINY_SHAPES | {name: (4,)})
    refuses(
        lambda: open_checkpoint(folder),
        UnsupportedModelError,
        rf"quantized tensors \({name}, as written by {method}\) but no quantization config",
        TODAY,
    )


def test_an_empty_quantization_config_is_none(tmp_path):
    for empty in (None, {}):
        open_checkpoint(tiny_folder(tmp_path / "m", {"quantization_config": empty})).close()
