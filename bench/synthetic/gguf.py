"""Llamas of random blocks as GGUF files."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

from ...loaders.gguf.types import BLOCK_TYPES, TensorType
from .pattern import PATTERN_BYTES, repeat, set_exponents
from .shapes import HEAD_DIM, LlamaSizes, tensors

_U32, _F32, _STRING, _ARRAY, _I32 = 4, 6, 8, 9, 5
_ALIGN = 32

# Type -> where the halves of a block are, and their exponents: so that weights are about 0.02 to
# 0.1, and minimums take away about what the mean of the codes adds.
_HALVES: dict[str, tuple[tuple[int, int], ...]] = {
    "Q4_0": ((0, -8),),
    "Q8_0": ((0, -12),),
    "Q2_K": ((80, -9), (82, -9)),
    "Q3_K": ((108, -11),),
    "Q4_K": ((0, -13), (2, -10)),
    "Q5_K": ((0, -14), (2, -10)),
    "Q6_K": ((208, -14),),
    "IQ4_XS": ((0, -14),),
}
BLOCKS: dict[str, TensorType] = {
    kind.name: kind for kind in BLOCK_TYPES.values() if kind.name in _HALVES
}
"""The types of blocks that ``write_gguf`` makes."""


def write_gguf(path: Path, shape: LlamaSizes, seed: int, form: str = "Q4_0") -> None:
    """A Llama whose matrices all are of one type of ``BLOCKS``, scales small and positive.

    Columns of the shape must be whole blocks.
    """
    kind = BLOCKS[form]
    infos, at = [], 0
    for name, rows, columns in tensors(shape):
        sizes = struct.pack("<IQQ", 2, columns, rows) if rows else struct.pack("<IQ", 1, columns)
        number, size = (kind.id, _size(kind, rows, columns)) if rows else (0, 4 * columns)
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
                repeat(file, pattern, _size(kind, rows, columns))
            else:
                file.write(struct.pack("<f", 1.0) * columns)
            file.write(bytes(-file.tell() % _ALIGN))
        file.flush()
        os.fsync(file.fileno())


def _size(kind: TensorType, rows: int, columns: int) -> int:
    """Bytes of a matrix; columns are whole blocks."""
    return rows * (columns // kind.elements) * kind.nbytes


def _blocks(kind: TensorType, seed: int) -> bytes:
    """About 4 MB of blocks: small scales in half precision, all else random."""
    count = PATTERN_BYTES // kind.nbytes
    raw = bytearray(random.Random(seed).randbytes(count * kind.nbytes))
    for at, exponent in _HALVES[kind.name]:
        set_exponents(raw, at, kind.nbytes, exponent, 0x03)
    return bytes(raw)


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
        "llama.attention.key_length": HEAD_DIM,
        "llama.attention.value_length": HEAD_DIM,
        "llama.rope.dimension_count": HEAD_DIM,
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
