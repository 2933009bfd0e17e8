"""Where a quantization config is found, and unknown methods refused by their name."""

from __future__ import annotations

from typing import Any

import pytest
from loader_gguf_files import refuses
from loader_hf_files import TINY_SHAPES, tiny_folder

from halfbyte.errors import UnsupportedModelError
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.files.folder_files import ModelFolder
from halfbyte.loaders.hf.methods.detect import quantization_config
from halfbyte.loaders.model.report import LoadReport

TODAY = "what loads: GGUF files"


@pytest.mark.parametrize(
    "config,method",
    [
        ({"quant_method": "aqlm", "bits": 4}, "aqlm"),
        ({"quant_method": "QuIP"}, "quip"),
        ({"method": "exl3"}, "exl3"),
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
        "compression_config": {"quant_method": "spqr"},
        "text_config": {"quantization_config": {"quant_method": "vptq"}},
    }.items():
        folder = tiny_folder(tmp_path / key, {key: value})
        refuses(lambda f=folder: open_checkpoint(f), UnsupportedModelError, f"config.json {key}")


SIDE_FILES = {
    "quantize_config": "gptq",
    "quant_config": "awq",
    "quantization_config": "auto-round",
    "hf_quant_config": "modelopt",
}


@pytest.mark.parametrize("stem,method", SIDE_FILES.items())
def test_side_files_name_the_method_where_they_say_nothing(tmp_path, stem, method):
    options: dict[str, Any] = {stem: {"bits": 4}}
    folder = ModelFolder(tiny_folder(tmp_path / "m", **options))
    found = quantization_config(folder, {}, LoadReport("safetensors"))
    assert found is not None
    assert (found.method, found.values) == (method, {"bits": 4})
    assert found.place.endswith(f"{stem}.json")


def test_config_json_wins_over_a_side_file_and_says_where_they_differ(tmp_path):
    folder = ModelFolder(tiny_folder(tmp_path / "m", quantize_config={"bits": 8, "sym": True}))
    report = LoadReport("safetensors")
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4, "sym": True}}
    found = quantization_config(folder, config, report)
    assert found is not None
    assert found.values["bits"] == 4
    (warning,) = report.warnings
    assert "bits is 4 in config.json" in warning
    assert "8 in quantize_config.json" in warning


def test_compression_config_is_that_of_compressed_tensors(tmp_path):
    folder = ModelFolder(tiny_folder(tmp_path / "m"))
    config = {"compression_config": {"format": "pack-quantized"}}
    found = quantization_config(folder, config, LoadReport("safetensors"))
    assert found is not None
    assert found.method == "compressed-tensors"


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
        "download the whole repository",
    )


def test_an_empty_quantization_config_is_none(tmp_path):
    for empty in (None, {}):
        open_checkpoint(tiny_folder(tmp_path / "m", {"quantization_config": empty})).close()
