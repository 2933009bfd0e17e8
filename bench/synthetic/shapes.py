"""Sizes of the synthetic Llamas, and the tensors that they have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

HEAD_DIM = 128


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
        tied: the embedding is the head, too.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool = False


SHAPES = {
    "tiny": LlamaSizes(2, 256, 512, 2, 1, 512),
    "tiny-tied": LlamaSizes(2, 256, 512, 2, 1, 512, tied=True),
    "small": LlamaSizes(8, 1024, 3584, 8, 2, 32000),
    "1b": LlamaSizes(16, 2048, 8192, 16, 4, 128256),
    "3b": LlamaSizes(36, 2048, 11008, 16, 2, 151936, tied=True),
    "8b": LlamaSizes(32, 4096, 14336, 32, 8, 128256),
}
"""``1b`` and ``8b`` have the sizes of Llama 3, but for the head, ``3b`` those of Qwen2.5-3B."""


def tensors(shape: LlamaSizes) -> Iterator[tuple[str, int, int]]:
    """GGUF name, rows and columns of every tensor in file order; 0 rows is a vector."""
    kv, width = shape.kv_heads * HEAD_DIM, shape.heads * HEAD_DIM
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
    if not shape.tied:
        yield "output.weight", shape.vocab, shape.hidden
