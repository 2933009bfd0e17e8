"""Folders of a one-layer llama with hand-packed compressed-tensors and FP8 weights.

The packers are written from the format's description, one number at a time, and share nothing
with the loader.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loader_hf_files import TINY_CONFIG
from safetensors.torch import save_file
from torch import Tensor

from halfbyte.errors import HalfbyteError
from halfbyte.kernels.formats.canonical import QuantizedLinear, Weight
from halfbyte.loaders import open_checkpoint

# The module under test: [N, K] = [hidden size, inner size].
DOWN = "model.layers.0.mlp.down_proj"


def fresh_rng() -> np.random.Generator:
    """Drawn afresh; pytest shows the seed when a test fails."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    return np.random.default_rng(seed)


def field_words(values: Sequence[int], bits: int, dense: bool = True) -> list[int]:
    """Words of 32 bits: one stream of fields, or as many whole fields a word as there is room."""
    if dense:
        stream = sum(int(value) << (i * bits) for i, value in enumerate(values))
        return [stream >> (32 * w) & 0xFFFFFFFF for w in range(-(-len(values) * bits // 32))]
    per = 32 // bits
    runs = [values[i : i + per] for i in range(0, len(values), per)]
    return [field_words(run, bits)[0] for run in runs]


def int32(rows: Sequence[Sequence[int]]) -> Tensor:
    """Unsigned words as the signed tensor that files hold."""
    return torch.from_numpy(np.array(rows, dtype=np.uint32).view(np.int32).copy())


def packed_parts(
    q_NK: np.ndarray, scales: Tensor, bits: int, dense: bool = True, z_NG: np.ndarray | None = None
) -> dict[str, Tensor]:
    """Tensors of pack-quantized signed codes; zero points are packed along N."""
    half = 1 << (bits - 1)
    parts = {
        "weight_packed": int32([field_words((row + half).tolist(), bits, dense) for row in q_NK]),
        "weight_scale": scales,
        "weight_shape": torch.tensor(q_NK.shape),
    }
    if z_NG is not None:
        columns = [field_words((column + half).tolist(), bits, dense) for column in z_NG.T]
        parts["weight_zero_point"] = int32(columns).T.contiguous()
    return parts


def codes(rng: np.random.Generator, n: int, k: int, bits: int) -> np.ndarray:
    """Signed codes [N, K] of the whole range, both ends of it included."""
    half = 1 << (bits - 1)
    q_NK = rng.integers(-half, half, (n, k))
    q_NK.flat[:2] = (-half, half - 1)
    return q_NK


def ct_config(weights: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A compressed-tensors config with one group for all linear modules."""
    group = {"targets": ["Linear"], "weights": dict(weights), "input_activations": None}
    group.update({key: more.pop(key) for key in list(more) if key in _GROUP_KEYS})
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    } | more


_GROUP_KEYS = ("targets", "input_activations", "output_activations", "surprise")


def llama_folder(
    path: Path,
    shape: tuple[int, int],
    parts: Mapping[str, Tensor],
    quantization: Mapping[str, Any],
    module: str = DOWN,
    extra: Mapping[str, Tensor] | None = None,
    **files: Any,
) -> Path:
    """A folder whose ``module`` is stored as ``parts``, all others as float16 zeros."""
    hidden, inner = shape
    config: dict[str, Any] = {
        **TINY_CONFIG,
        "hidden_size": hidden,
        "intermediate_size": inner,
    }
    if quantization:
        config["quantization_config"] = dict(quantization)
    kv, layer = hidden // 2, "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (6, hidden),
        f"{layer}input_layernorm.weight": (hidden,),
        f"{layer}post_attention_layernorm.weight": (hidden,),
        f"{layer}self_attn.q_proj.weight": (hidden, hidden),
        f"{layer}self_attn.k_proj.weight": (kv, hidden),
        f"{layer}self_attn.v_proj.weight": (kv, hidden),
        f"{layer}self_attn.o_proj.weight": (hidden, hidden),
        f"{layer}mlp.gate_proj.weight": (inner, hidden),
        f"{layer}mlp.up_proj.weight": (inner, hidden),
        f"{layer}mlp.down_proj.weight": (hidden, inner),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (6, hidden),
    }
    tensors = {name: torch.zeros(s, dtype=torch.float16) for name, s in shapes.items()}
    if parts:
        del tensors[f"{module}.weight"]
    tensors |= {f"{module}.{suffix}": value.contiguous() for suffix, value in parts.items()}
    tensors |= dict(extra or {})
    path.mkdir(exist_ok=True, parents=True)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    for stem, content in files.items():
        (path / f"{stem}.json").write_text(json.dumps(content))
    return path


def load_from(folder: Path, module: str = DOWN) -> tuple[Weight, list[str], list[str]]:
    """The module's weight, and the report's decisions and warnings."""
    checkpoint = open_checkpoint(folder)
    weight = checkpoint.load(f"{module}.weight")
    report = checkpoint.report()
    checkpoint.close()
    return weight, report.decisions, report.warnings


def quantized(folder: Path, module: str = DOWN) -> QuantizedLinear:
    """The module's weight, which must be quantized."""
    weight, _, _ = load_from(folder, module)
    assert isinstance(weight, QuantizedLinear)
    return weight


def refused(folder: Path, kind: type[HalfbyteError], *parts: str, module: str = DOWN) -> None:
    """Assert that opening, or loading the module, raises ``kind`` with every part in its text."""
    with pytest.raises(kind) as caught:
        load_from(folder, module)
    assert type(caught.value) is kind
    for part in parts:
        assert part in str(caught.value)
