"""Hugging Face folders for tests: byte-level safetensors, and a sound tiny llama folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I32": 4, "U8": 1, "F8_E4M3": 1}

# A one-layer llama: hidden 8, 2 heads of 4, 1 key/value head, inner 12, vocab 6.
TINY_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "vocab_size": 6,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float16",
}
TINY_SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (6, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.post_attention_layernorm.weight": (8,),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.self_attn.v_proj.weight": (4, 8),
    "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.mlp.gate_proj.weight": (12, 8),
    "model.layers.0.mlp.up_proj.weight": (12, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 12),
    "model.norm.weight": (8,),
    "lm_head.weight": (6, 8),
}


def file_bytes(header: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header, and a length field that may lie."""
    raw = header.encode() if isinstance(header, str) else header
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def header_of(shapes: dict[str, tuple[int, ...]], dtype: str = "F16") -> dict[str, Any]:
    header, at = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape) * DTYPES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    return header


def safetensors(shapes: dict[str, tuple[int, ...]], dtype: str = "F16") -> bytes:
    """A sound file of zeros, but for the LM head: an equal one would be the embedding matrix."""
    header = header_of(shapes, dtype)
    size = max((e["data_offsets"][1] for e in header.values()), default=0)
    data = bytearray(size)
    if "lm_head.weight" in header:
        start, stop = header["lm_head.weight"]["data_offsets"]
        data[start:stop] = b"\x3c" * (stop - start)
    return file_bytes(json.dumps(header), bytes(data))


def tiny_folder(
    path: Path,
    config: dict[str, Any] | None = None,
    shapes: dict[str, tuple[int, ...]] | None = None,
    dtype: str = "F16",
    **files: Any,
) -> Path:
    """Write the tiny llama; ``config`` replaces or (None under a "-key") drops entries.

    ``files`` are further JSON files by stem, e.g. ``generation_config={...}``.
    """
    path.mkdir(exist_ok=True)
    values = dict(TINY_CONFIG)
    for key, value in (config or {}).items():
        if key.startswith("-"):
            values.pop(key[1:], None)
        else:
            values[key] = value
    (path / "config.json").write_text(json.dumps(values))
    (path / "model.safetensors").write_bytes(safetensors(shapes or TINY_SHAPES, dtype))
    for stem, content in files.items():
        (path / f"{stem}.json").write_text(json.dumps(content))
    return path
