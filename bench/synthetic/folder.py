"""Llamas of random codes as Hugging Face folders: GPTQ, AWQ and bitsandbytes' NF4."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...kernels.formats.code_tables import NF4
from .pattern import PATTERN_BYTES, random_halves, repeat
from .shapes import HEAD_DIM, LlamaSizes, tensors

_GROUP = 128  # of GPTQ and AWQ
_BLOCK = 64  # of NF4
_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_BYTES = {"I32": 4, "F32": 4, "F16": 2, "U8": 1}


@dataclass(frozen=True, slots=True)
class _Part:
    """One tensor of a matrix or vector: name, type, sizes, and what it is filled with."""

    name: str
    dtype: str
    sizes: tuple[int, ...]
    pattern: bytes

    @property
    def nbytes(self) -> int:
        size = _BYTES[self.dtype]
        for count in self.sizes:
            size *= count
        return size


class _Patterns:
    """Random numbers of the kinds that tensors hold, drawn once."""

    def __init__(self, seed: int) -> None:
        self.codes = random.Random(seed).randbytes(PATTERN_BYTES)
        self.scales = random_halves(seed + 1, -8, signed=False)
        # Two, since a head that equals the embedding would be loaded as one matrix with it.
        self.embedding = random_halves(seed + 2, -6, signed=True)
        self.head = random_halves(seed + 3, -6, signed=True)
        self.ones = struct.pack("<e", 1.0) * (PATTERN_BYTES // 2)
        self.middle = b"\x77" * PATTERN_BYTES
        drawn = random.Random(seed + 4)
        floats = [drawn.uniform(0.02, 0.06) for _ in range(PATTERN_BYTES // 64)]
        self.absmax = struct.pack(f"<{len(floats)}f", *floats) * 16


def _gptq(name: str, n: int, k: int, from_: _Patterns) -> Iterator[_Part]:
    yield _Part(f"{name}.qweight", "I32", (k // 8, n), from_.codes)
    # The first version of the format stores a zero point of 8 as 7.
    yield _Part(f"{name}.qzeros", "I32", (k // _GROUP, n // 8), from_.middle)
    yield _Part(f"{name}.scales", "F16", (k // _GROUP, n), from_.scales)


def _awq(name: str, n: int, k: int, from_: _Patterns) -> Iterator[_Part]:
    yield _Part(f"{name}.qweight", "I32", (k, n // 8), from_.codes)
    yield _Part(f"{name}.qzeros", "I32", (k // _GROUP, n // 8), from_.codes)
    yield _Part(f"{name}.scales", "F16", (k // _GROUP, n), from_.scales)


def _nf4(name: str, n: int, k: int, from_: _Patterns) -> Iterator[_Part]:
    said = {"quant_type": "nf4", "blocksize": _BLOCK, "dtype": "float16", "shape": [n, k]}
    state, weight = json.dumps(said).encode(), f"{name}.weight"
    yield _Part(weight, "U8", (n * k // 2, 1), from_.codes)
    yield _Part(f"{weight}.absmax", "F32", (n * k // _BLOCK,), from_.absmax)
    yield _Part(f"{weight}.quant_map", "F32", (16,), struct.pack("<16f", *NF4))
    yield _Part(f"{weight}.quant_state.bitsandbytes__nf4", "U8", (len(state),), state)


@dataclass(frozen=True, slots=True)
class _Method:
    """What a method's config says, and the tensors of a matrix [N, K]."""

    config: dict[str, object]
    parts: Callable[[str, int, int, _Patterns], Iterator[_Part]]


_METHODS = {
    "GPTQ": _Method(
        {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": _GROUP,
            "sym": True,
            "desc_act": False,
            "checkpoint_format": "gptq",
        },
        _gptq,
    ),
    "AWQ": _Method(
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": _GROUP,
            "version": "gemm",
            "zero_point": True,
        },
        _awq,
    ),
    "NF4": _Method(
        {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": "float16",
            "bnb_4bit_quant_storage": "uint8",
        },
        _nf4,
    ),
}
FOLDER_METHODS = tuple(_METHODS)
"""The methods that ``write_folder`` knows."""


def write_folder(folder: Path, shape: LlamaSizes, seed: int, form: str) -> list[Path]:
    """A Llama in one of ``FOLDER_METHODS`` -> its files, the weights first.

    GPTQ has 4 bits in groups of 128 without zero points, AWQ with them, NF4 blocks of 64 with
    scales in float32. Embedding, head and norms are float16, as these tools leave them.
    """
    method, patterns = _METHODS[form], _Patterns(seed)
    weights = folder / "model.safetensors"
    _write_safetensors(weights, [part for part in _parts(shape, method, patterns)])
    config, tokenizer = folder / "config.json", folder / "tokenizer.json"
    said = _config(shape) | {"quantization_config": method.config}
    config.write_text(json.dumps(said), encoding="utf-8")
    tokenizer.write_text(json.dumps(_tokenizer(shape.vocab)), encoding="utf-8")
    return [weights, config, tokenizer]


def _parts(shape: LlamaSizes, method: _Method, patterns: _Patterns) -> Iterator[_Part]:
    for name, rows, columns in tensors(shape):
        first, *rest = name.split(".")
        if first == "token_embd":
            yield _Part("model.embed_tokens.weight", "F16", (rows, columns), patterns.embedding)
        elif first == "output":
            yield _Part("lm_head.weight", "F16", (rows, columns), patterns.head)
        elif first == "output_norm":
            yield _Part("model.norm.weight", "F16", (columns,), patterns.ones)
        else:
            module = f"model.layers.{rest[0]}.{_NAMES[rest[1]]}"
            if rows:
                yield from method.parts(module, rows, columns, patterns)
            else:
                yield _Part(f"{module}.weight", "F16", (columns,), patterns.ones)


def _write_safetensors(path: Path, parts: list[_Part]) -> None:
    header: dict[str, object] = {}
    at = 0
    for part in parts:
        end = at + part.nbytes
        header[part.name] = {"dtype": part.dtype, "shape": part.sizes, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for part in parts:
            repeat(file, part.pattern, part.nbytes)
        file.flush()
        os.fsync(file.fileno())


def _config(shape: LlamaSizes) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": HEAD_DIM,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _tokenizer(vocab: int) -> dict[str, object]:
    """A tokenizer of single ASCII characters; all other tokens are never made of a text."""
    letters = [chr(code) for code in range(33, 127)]
    words = ["<unk>", "<s>", "</s>", *letters, *(f"t{i}" for i in range(vocab))][:vocab]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": words[i], "special": True, **special} for i in range(3)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "vocab": {word: i for i, word in enumerate(words)},
            "merges": [],
        },
    }
