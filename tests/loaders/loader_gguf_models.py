"""Tiny random models written by the format package's own writer, with their true weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB = 64, 2, 4, 2, 16, 96, 40

GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str) -> str:
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    module, ending = rest.rsplit(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[module]}.{ending}"


def random_state(
    *, bias: tuple[str, ...] = (), qk_norm: bool = False, tied: bool = False, layers: int = LAYERS
) -> dict[str, np.ndarray]:
    """Hugging Face name -> float32 weights; ``bias`` names the modules that have one."""
    seed = np.random.SeedSequence().entropy
    print("weights seed", seed)
    rng = np.random.default_rng(seed)
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(layers):
        own: dict[str, tuple[int, ...]] = {
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
            "self_attn.q_proj": (q, HIDDEN),
            "self_attn.k_proj": (kv, HIDDEN),
            "self_attn.v_proj": (kv, HIDDEN),
            "self_attn.o_proj": (HIDDEN, q),
            "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
        }
        if qk_norm:
            own |= {"self_attn.q_norm": (HEAD_DIM,), "self_attn.k_norm": (HEAD_DIM,)}
        for module, shape in own.items():
            shapes[f"model.layers.{layer}.{module}.weight"] = shape
            if module in bias:
                shapes[f"model.layers.{layer}.{module}.bias"] = shape[:1]
    shapes["model.norm.weight"] = (HIDDEN,)
    if not tied:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """The converter's row order for llama: halves of a head become neighbours."""
    split = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def basic_metadata(writer: gguf.GGUFWriter, layers: int = LAYERS) -> None:
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_vocab_size(VOCAB)


def write_gguf(
    path: Path,
    arch: str,
    state: dict[str, np.ndarray],
    *,
    types: Callable[[str], str] = lambda name: "F32",
    metadata: Callable[[gguf.GGUFWriter], None] = basic_metadata,
    extra: dict[str, np.ndarray] | None = None,
    tensors_per_part: int = 0,
) -> dict[str, np.ndarray]:
    """Write a model; returns what each tensor means after its rounding, in Hugging Face order."""
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=tensors_per_part)
    metadata(writer)
    meant: dict[str, np.ndarray] = {}
    for name, weight in state.items():
        kind = gguf.GGMLQuantizationType[types(name)]
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
        permuted = heads is not None and arch in ("llama", "mistral", "mistral3")
        stored = interleave(weight, heads) if permuted and heads else weight
        if kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(stored))
            meant[name] = weight
            continue
        writer.add_tensor(gguf_name(name), quantize(stored, kind), raw_dtype=kind)
        # Rows are rounded one by one, so rounding and permuting commute.
        meant[name] = dequantize(quantize(weight, kind), kind).reshape(weight.shape)
    finish(writer, extra or {})
    return meant


def finish(writer: gguf.GGUFWriter, extra: dict[str, np.ndarray]) -> None:
    """Add the last tensors and write the file."""
    for name, values in extra.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
