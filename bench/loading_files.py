"""Synthetic checkpoints for the loading benchmark: Llamas of random codes."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_U32, _F32, _STRING, _ARRAY, _I32 = 4, 6, 8, 9, 5
_ALIGN = 32
_REPEATED = 4 << 20


@dataclass(frozen=True, slots=True)
class LlamaSizes:
    """Sizes of a Llama.

    Attributes:
        layers: decoder layers.
        hidden: width.
        inner: width of the MLP.
        heads: query heads of 128 elements.
        kv_heads: key/value heads.
        vocab: tokens.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocab: int


SHAPES = {
    "tiny": LlamaSizes(2, 256, 512, 2, 1, 512),
    "small": LlamaSizes(8, 1024, 3584, 8, 2, 32000),
    "1b": LlamaSizes(16, 2048, 8192, 16, 4, 128256),
    "8b": LlamaSizes(32, 4096, 14336, 32, 8, 128256),
}


@dataclass(frozen=True, slots=True)
class _BlockLayout:
    """A GGUF block type.

    Attributes:
        number: as GGUF counts them.
        elements: elements of a block.
        nbytes: bytes of a block.
        halves: where its half-precision scale and minimum begin.
    """

    number: int
    elements: int
    nbytes: int
    halves: tuple[int, ...]


BLOCKS = {
    "Q4_0": _BlockLayout(2, 32, 18, (0,)),
    "Q8_0": _BlockLayout(8, 32, 34, (0,)),
    "Q4_K": _BlockLayout(12, 256, 144, (0, 2)),
    "Q6_K": _BlockLayout(14, 256, 210, (208,)),
}
_GPTQ = "GPTQ"
FORMATS = (*BLOCKS, _GPTQ)
_GROUP = 128  # of the GPTQ checkpoint
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


def tensors(shape: LlamaSizes) -> Iterator[tuple[str, int, int]]:
    """Name, rows and columns of every tensor in file order; 0 rows is a vector of float32."""
    kv, width = shape.kv_heads * 128, shape.heads * 128
    yield "token_embd.weight", shape.vocab, shape.hidden
    for i in range(shape.layers):
        yield f"blk.{i}.attn_norm.weight", 0, shape.hidden
        yield f"blk.{i}.attn_q.weight", width, shape.hidden
        yield f"blk.{i}.attn_k.weight", kv, shape.hidden
        yield f"blk.{i}.attn_v.weight", kv, shape.hidden
        yield f"blk.{i}.attn_output.weight", shape.hidden, width
        yield f"blk.{i}.ffn_norm.weight", 0, shape.hidden
        yield f"blk.{i}.ffn_gate.weight", shape.inner, shape.hidden
        yield f"blk.{i}.ffn_up.weight", shape.inner, shape.hidden
        yield f"blk.{i}.ffn_down.weight", shape.hidden, shape.inner
    yield "output_norm.weight", 0, shape.hidden
    yield "output.weight", shape.vocab, shape.hidden


def write_model(folder: Path, shape: LlamaSizes, form: str, seed: int) -> tuple[Path, list[Path]]:
    """A Llama in one of ``FORMATS``: what to open, and the files that were written."""
    if form != _GPTQ:
        path = folder / "model.gguf"
        write_gguf(path, shape, seed, form)
        return path, [path]
    config = folder / "config.json"
    config.write_text(json.dumps(_hf_config(shape)), encoding="utf-8")
    path = folder / "model.safetensors"
    write_gptq(path, shape, seed)
    return folder, [path, config]


def write_gguf(path: Path, shape: LlamaSizes, seed: int, form: str = "Q4_0") -> None:
    """A Llama whose matrices all are of one block type, with small positive scales."""
    kind = BLOCKS[form]
    infos, at = [], 0
    for name, rows, columns in tensors(shape):
        sizes = struct.pack("<IQQ", 2, columns, rows) if rows else struct.pack("<IQ", 1, columns)
        number, size = (kind.number, _size(kind, rows, columns)) if rows else (0, 4 * columns)
        infos.append(_text(name) + sizes + struct.pack("<IQ", number, at))
        at += -(-size // _ALIGN) * _ALIGN
    header = _metadata(shape)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(header))
    with path.open("wb") as file:
        file.write(head + b"".join(header) + b"".join(infos))
        file.write(bytes(-file.tell() % _ALIGN))
        blocks = _blocks(kind, seed)
        for name, rows, columns in tensors(shape):
            if rows:
                # A head that equals the embedding would be loaded as one matrix with it.
                pattern = blocks[kind.nbytes :] if name == "output.weight" else blocks
                _repeat(file, pattern, _size(kind, rows, columns))
            else:
                file.write(struct.pack("<f", 1.0) * columns)
            file.write(bytes(-file.tell() % _ALIGN))
        file.flush()
        os.fsync(file.fileno())


def write_gptq(path: Path, shape: LlamaSizes, seed: int) -> None:
    """A Llama in GPTQ with 4 bits and groups of 128, symmetric, embedding and head in float16."""
    random_bytes = random.Random(seed).randbytes(_REPEATED)
    small = struct.pack("<e", 2.0**-8) * (_REPEATED // 2)
    other = struct.pack("<e", 2.0**-7) * (_REPEATED // 2)  # equal to the embedding, it is tied
    header: dict[str, object] = {}
    data: list[tuple[bytes, int]] = []
    at = 0

    def add(name: str, dtype: str, sizes: tuple[int, ...], pattern: bytes) -> None:
        nonlocal at
        size = (4 if dtype == "I32" else 2) * sizes[0] * (sizes[1] if len(sizes) > 1 else 1)
        header[name] = {"dtype": dtype, "shape": sizes, "data_offsets": [at, at + size]}
        data.append((pattern, size))
        at += size

    for name, rows, columns in tensors(shape):
        parts = name.split(".")
        if parts[0] != "blk":
            top = {"token_embd": "model.embed_tokens", "output": "lm_head"}
            module = top.get(parts[0], "model.norm")
            pattern = other if module == "lm_head" else small
            add(f"{module}.weight", "F16", (rows, columns) if rows else (columns,), pattern)
            continue
        module = f"model.layers.{parts[1]}.{_NAMES[parts[2]]}"
        if not rows:
            add(f"{module}.weight", "F16", (columns,), small)
            continue
        groups = columns // _GROUP
        add(f"{module}.qweight", "I32", (columns // 8, rows), random_bytes)
        add(f"{module}.qzeros", "I32", (groups, rows // 8), b"\x77" * _REPEATED)
        add(f"{module}.scales", "F16", (groups, rows), small)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for pattern, size in data:
            _repeat(file, pattern, size)
        file.flush()
        os.fsync(file.fileno())


def _repeat(file: IO[bytes], pattern: bytes, size: int) -> None:
    while size > 0:
        size -= file.write(pattern[:size])


def _size(kind: _BlockLayout, rows: int, columns: int) -> int:
    """Bytes of a matrix; columns are whole blocks."""
    return rows * (columns // kind.elements) * kind.nbytes


def _blocks(kind: _BlockLayout, seed: int) -> bytes:
    """About 4 MB of blocks: small scales in half precision, all else random."""
    count = _REPEATED // kind.nbytes
    raw = bytearray(random.Random(seed).randbytes(count * kind.nbytes))
    for at in kind.halves:
        raw[at :: kind.nbytes] = bytes(count)
        raw[at + 1 :: kind.nbytes] = bytes([0x1C]) * count
    return bytes(raw)


def _hf_config(shape: LlamaSizes) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": 128,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "quantization_config": {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": _GROUP,
            "sym": True,
            "desc_act": False,
            "checkpoint_format": "gptq",
        },
    }


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _metadata(shape: LlamaSizes) -> list[bytes]:
    """Key/value pairs, the vocabulary made up."""
    numbers = {
        "llama.block_count": shape.layers,
        "llama.context_length": 8192,
        "llama.embedding_length": shape.hidden,
        "llama.feed_forward_length": shape.inner,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.key_length": 128,
        "llama.attention.value_length": 128,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    count = shape.vocab
    words = ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(count - 3))]
    lists: dict[str, tuple[int, bytes]] = {
        "tokens": (_STRING, b"".join(map(_text, words))),
        "scores": (_F32, struct.pack(f"<{count}f", *(-float(i) for i in range(count)))),
        "token_type": (_I32, struct.pack(f"<{count}i", 2, 3, 3, *[1] * (count - 3))),
    }
    pairs = [_text("general.architecture") + struct.pack("<I", _STRING) + _text("llama")]
    pairs.append(_text("tokenizer.ggml.model") + struct.pack("<I", _STRING) + _text("llama"))
    key = _text("llama.attention.layer_norm_rms_epsilon")
    pairs.append(key + struct.pack("<If", _F32, 1e-5))
    pairs += [_text(key) + struct.pack("<II", _U32, value) for key, value in numbers.items()]
    for key, (kind, data) in lists.items():
        head = struct.pack("<IIQ", _ARRAY, kind, count)
        pairs.append(_text(f"tokenizer.ggml.{key}") + head + data)
    return pairs
