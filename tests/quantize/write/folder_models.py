"""Small random models to write: folders of random weights, quantized in many ways."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from halfbyte.kernels.formats.canonical import (
    ActivationFormat,
    QuantizedLinear,
    WeightFormat,
    pack_codes,
)
from halfbyte.kernels.formats.code_tables import FP4, NF4
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.model.quantizing import is_decoder_linear
from halfbyte.quantize.pipeline import Overlay

FIXTURES = Path(__file__).parents[2] / "fixtures"
Make = Callable[[str, Tensor], QuantizedLinear]


def random_folder(path: Path, **values: Any) -> Path:
    """A Llama of two layers of random weights; ``values`` are put into its config."""
    path.mkdir()
    source = FIXTURES / "fp16-llama-spm"
    config = json.loads((source / "config.json").read_text())
    config |= {"vocab_size": 600, "num_hidden_layers": 2, "max_position_embeddings": 128, **values}
    (path / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (source / name).exists():
            (path / name).write_bytes((source / name).read_bytes())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or hidden // heads
    dtype = getattr(torch, config["dtype"])
    shapes = {"model.embed_tokens.weight": (600, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (600, hidden)
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{norm}.weight"] = (hidden,)
        for module, sides in {
            "self_attn.q_proj": (heads * head, hidden),
            "self_attn.k_proj": (kv * head, hidden),
            "self_attn.v_proj": (kv * head, hidden),
            "self_attn.o_proj": (hidden, heads * head),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            shapes[f"{prefix}{module}.weight"] = sides
    tensors = {name: (torch.randn(shape) * 0.1).to(dtype) for name, shape in shapes.items()}
    save_file(tensors, path / "model.safetensors")
    return path


def quantized(path: Path, make: Make, keep: Callable[[str], bool] = lambda name: False) -> Overlay:
    """The model at a path with every matrix of its decoder made by ``make``, but for some."""
    model = Overlay(open_checkpoint(path))
    for info in model.tensors():
        if is_decoder_linear(info.name, info.shape) and not keep(info.name):
            weight = model.load(info.name)
            assert isinstance(weight, Tensor)
            model.weights[info.name] = make(info.name, weight)
    return model


def random_codes(
    bits: int, group: int, zero: str = "none", scale_dtype: torch.dtype = torch.float16
) -> Make:
    """Random codes of the shape of a weight, scales and zero points of any value."""

    def make(name: str, weight: Tensor) -> QuantizedLinear:
        n, k = weight.shape
        groups = 1 if group == -1 else -(-k // group)
        codes = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8)
        scales = (torch.rand(n, groups) * 0.02 + 1e-4).to(scale_dtype)
        zeros = torch.randint(0, 1 << bits, (n, groups)).float() if zero == "int" else None
        form = WeightFormat(bits, group, "int" if zero == "int" else "none")
        return QuantizedLinear(name, form, pack_codes(codes, bits), scales, zeros, k)

    return make


def random_table(group: int, kind: str) -> Make:
    """Random codes of NF4 or FP4."""
    table = {"nf4": NF4, "fp4": FP4}[kind]

    def make(name: str, weight: Tensor) -> QuantizedLinear:
        made = random_codes(4, group, scale_dtype=torch.float32)(name, weight)
        made.format = WeightFormat(4, group, "table", table)
        return made

    return make


def random_eight(act: ActivationFormat | None, floats: bool = False) -> Make:
    """Random 8-bit codes with a scale for each row, integers or FP8."""

    def make(name: str, weight: Tensor) -> QuantizedLinear:
        made = random_codes(8, -1, scale_dtype=torch.float32)(name, weight)
        rule = act
        if act is not None and act.scale is not None:
            zero = 0 if act.symmetric else random.randint(-128, 127)
            rule = replace(act, scale=random.uniform(1e-3, 1.0), zero=zero)
        made.format = WeightFormat(8, -1, "e4m3" if floats else "none", act=rule)
        if floats:
            made.codes = made.codes.masked_fill(made.codes & 0x7F == 0x7F, 0)  # no numbers
        return made

    return make


def stored(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's files."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= load_file(file)
    return found


def raw(tensor: Tensor) -> Tensor:
    """The bytes of a tensor."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
