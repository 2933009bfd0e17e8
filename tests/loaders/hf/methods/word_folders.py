"""One-layer Llama folders with hand-packed GPTQ and AWQ tensors.

The packers are written from the formats' description, one number at a time, and share nothing
with the loader.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loader_hf_files import TINY_CONFIG
from safetensors.torch import save_file
from torch import Tensor

# The module under test: [N, K] = [hidden size, inner size].
DOWN = "model.layers.0.mlp.down_proj"
VOCAB = 8


def stream_words(values: Sequence[int], bits: int) -> list[int]:
    """Value i in bits [i * bits, (i + 1) * bits) of a stream of 32-bit words."""
    stream = sum(int(value) << (i * bits) for i, value in enumerate(values))
    count = -(-len(values) * bits // 32)
    return [stream >> (32 * i) & 0xFFFFFFFF for i in range(count)]


def int32(rows: Sequence[Sequence[int]]) -> Tensor:
    """Unsigned words as the signed tensor that files hold."""
    return torch.from_numpy(np.array(rows, dtype=np.uint32).view(np.int32).copy())


def gptq_qweight(q_NK: np.ndarray, bits: int) -> Tensor:
    return int32([stream_words(row, bits) for row in q_NK]).t().contiguous()


def gptq_qzeros(z_GN: np.ndarray, bits: int, version: str) -> Tensor:
    """v2: as they are. v1: 1 less in every field, with the borrow running through the word."""
    if version == "v1" and bits == 3:
        z_GN = (z_GN - 1) % 8
    rows = [stream_words(row, bits) for row in z_GN]
    if version == "v1" and bits != 3:
        one = sum(1 << shift for shift in range(0, 32, bits))
        rows = [[(word - one) % (1 << 32) for word in row] for row in rows]
    return int32(rows)


def gptq_parts(
    q_NK: np.ndarray, scales_NG: np.ndarray, z_GN: np.ndarray, bits: int, version: str
) -> dict[str, Tensor]:
    return {
        "qweight": gptq_qweight(q_NK, bits),
        "qzeros": gptq_qzeros(z_GN, bits, version),
        "scales": torch.from_numpy(scales_NG.T.copy()),
    }


def dequantized(
    q_NK: np.ndarray, scales_NG: np.ndarray, z_GN: np.ndarray, g_idx_K: np.ndarray
) -> Tensor:
    """``scale * (code - zero)`` in float32, element by element."""
    zeros = z_GN.T[:, g_idx_K].astype(np.float32)
    scales = scales_NG.astype(np.float32)[:, g_idx_K]
    return torch.from_numpy((q_NK.astype(np.float32) - zeros) * scales)


def llama_folder(
    path: Path,
    shape: tuple[int, int],
    quantization: Mapping[str, Any] | None,
    modules: Mapping[str, Mapping[str, Tensor]],
    files: Mapping[str, Any] | None = None,
    extra: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A folder whose ``modules`` are stored as the given parts, and all others as zeros."""
    hidden, inner = shape
    values: dict[str, Any] = {
        **TINY_CONFIG,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        **(config or {}),
    }
    if quantization is not None:
        values["quantization_config"] = dict(quantization)
    layer = "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (VOCAB, hidden),
        "lm_head": (VOCAB, hidden),
        "model.norm": (hidden,),
        f"{layer}input_layernorm": (hidden,),
        f"{layer}post_attention_layernorm": (hidden,),
        **{f"{layer}self_attn.{p}_proj": (hidden, hidden) for p in "qkvo"},
        f"{layer}mlp.gate_proj": (inner, hidden),
        f"{layer}mlp.up_proj": (inner, hidden),
        DOWN: (hidden, inner),
    }
    tensors: dict[str, Tensor] = {}
    for module, size in shapes.items():
        if module not in modules:
            tensors[f"{module}.weight"] = torch.zeros(size, dtype=torch.float16)
    for module, parts in modules.items():
        tensors |= {f"{module}.{suffix}": tensor for suffix, tensor in parts.items()}
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors | dict(extra or {}), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(values))
    for name, content in (files or {}).items():
        (path / name).write_text(json.dumps(content))
    return path
