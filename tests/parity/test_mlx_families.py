"""Folders as mlx-lm writes them: quantized embeddings, mixed widths, stacked experts, wrappers.

The packer is naive, one number at a time; transformers runs the dequantized weights.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_quantized_families import compare, fields, write
from tiny_models import CLASSES, make_model, save_model
from torch import Tensor

from halfbyte import Engine
from halfbyte.errors import UnsupportedModelError

GROUP = 32
LINEAR = re.compile(r".+(?:_proj|embed_tokens|lm_head|experts\.\d+\.w[123])\.weight")
NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def affine(weight: Tensor, bits: int) -> tuple[dict[str, Tensor], Tensor]:
    """A matrix [N, K] as MLX stores it, and what that means."""
    n, k = weight.shape
    groups = weight.reshape(n, -1, GROUP)
    low, high = groups.amin(-1), groups.amax(-1)
    scales = (high - low) / ((1 << bits) - 1)
    q = ((groups - low[..., None]) / scales[..., None]).round()
    codes = q.view(n, k).int().tolist()
    words = torch.tensor([fields(row, bits) for row in codes], dtype=torch.int64)
    dense = (q * scales[..., None] + low[..., None]).view(n, k)
    return {"weight": words.to(torch.uint32), "scales": scales, "biases": low}, dense


def quantize(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """Stored and dequantized tensors, and the config; ``o_proj`` has 6 bits, the others 3.

    Rows that are no whole groups stay plain, as MLX leaves them.
    """
    stored, dense = dict(tensors), dict(tensors)
    config: dict[str, Any] = {"group_size": GROUP, "bits": 3, "mode": "affine"}
    stacks: dict[str, list[Tensor]] = {}
    for name, weight in tensors.items():
        if not LINEAR.fullmatch(name) or weight.shape[1] % GROUP:
            continue
        module = name.removesuffix(".weight")
        bits = 6 if module.endswith("o_proj") else 3
        if bits == 6:
            config[module] = {"group_size": GROUP, "bits": bits}
        parts, dense[name] = affine(weight, bits)
        del stored[name]
        expert = re.fullmatch(r"(.+)\.experts\.\d+\.(.+)", module)
        for suffix, value in parts.items():
            if expert is None:
                stored[f"{module}.{suffix}"] = value
            else:
                stem = f"{expert[1]}.switch_mlp.{NAMES.get(expert[2], expert[2])}"
                stacks.setdefault(f"{stem}.{suffix}", []).append(value)
    return stored | {key: torch.stack(values) for key, values in stacks.items()}, dense, config


def make(name: str, folder: Path) -> tuple[Any, dict[str, Tensor], Any]:
    """A model on the dequantized weights; what is stored of it, and the config."""
    save_model(make_model(name, 7), folder)
    stored, dense, config = quantize(load_file(folder / "model.safetensors"))
    write(folder, dense)
    model = CLASSES[name][1].from_pretrained(folder, dtype=torch.float32).eval()
    model.config._attn_implementation = "eager"
    return model, stored, config


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_families(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model, stored, config = make(name, folder)
    assert any("switch_mlp" in key for key in stored) == (name == "mixtral")
    assert "model.embed_tokens.scales" in stored
    write(folder, stored, quantization=config, quantization_config=config)
    compare(model, folder, [], 7)


def test_a_wrapped_gemma3(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(make_model("gemma3", 7), folder)
    tensors = load_file(folder / "model.safetensors")
    stored, dense, config = quantize({f"language_model.{k}": v for k, v in tensors.items()})
    write(folder, {k.removeprefix("language_model."): v for k, v in dense.items()})
    model = CLASSES["gemma3"][1].from_pretrained(folder, dtype=torch.float32).eval()
    model.config._attn_implementation = "eager"
    inner = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text("{}")
    kind = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}
    write(folder, stored, **kind, text_config=inner, quantization=config)
    compare(model, folder, [], 7)


def test_a_folder_without_its_config_says_what_wrote_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    _, stored, config = make("llama", folder)
    write(folder, stored)
    with pytest.raises(UnsupportedModelError, match="as written by mlx"):
        Engine(folder, backend="reference")
    write(folder, stored, quantization_config=config)
    with Engine(folder, backend="reference") as engine:
        assert "MLX 3-bit g32" in engine.report.formats
    named = {"quant_method": "aqlm"}
    write(folder, stored, quantization=config, quantization_config=named)
    with pytest.raises(UnsupportedModelError, match="quantized with aqlm, which is not"):
        Engine(folder, backend="reference")
