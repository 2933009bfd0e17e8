"""GGUF files: llama.cpp's converter, then llama.cpp's own block quantizers tensor by tensor.

Needs a llama.cpp checkout (or the one inside the llama-cpp-python source package) in LLAMA_CPP,
and its ggml-base library in GGML_BASE; see README.md. Expected: the gguf package's dequantizer,
names and order back to Hugging Face's, transformers in fp32. Every tensor that comes back is
compared with the one that went in, so that a slip in the way back cannot pass.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import gguf
import numpy as np
import sentencepiece
import torch
from gguf import GGMLQuantizationType as Q
from numpy.typing import NDArray
from torch import Tensor

# Rows of 256, as K-quants need; the heads give rows of 64, which fall back.
WIDE = {
    "hidden_size": 256,
    "head_dim": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
# What llama.cpp takes instead where a row is no multiple of 256.
FALLBACK = {
    Q.Q2_K: Q.IQ4_NL,
    Q.Q3_K: Q.IQ4_NL,
    Q.IQ4_XS: Q.IQ4_NL,
    Q.Q4_K: Q.Q5_0,
    Q.Q5_K: Q.Q5_1,
    Q.Q6_K: Q.Q8_0,
}
# folder -> (family, changes of the model, "bpe" or "spm", [(part of the name, type)] first wins)
CASES: dict[str, tuple[str, dict[str, Any], str, list[tuple[str, Q]]]] = {
    "gguf-q4_k-q6_k-qwen3": (
        "qwen3",
        {**WIDE, "intermediate_size": 256},
        "bpe",
        [("token_embd", Q.Q6_K), ("attn_v", Q.Q6_K), ("blk.0.ffn_down", Q.Q6_K), ("", Q.Q4_K)],
    ),
    "gguf-q5_k-q3_k-gemma2": (
        "gemma2",
        {**WIDE, "intermediate_size": 64, "query_pre_attn_scalar": 32},
        "spm",
        [("token_embd", Q.Q8_0), ("ffn_down", Q.Q5_K), ("attn_", Q.Q5_K), ("", Q.Q3_K)],
    ),
    "gguf-q3_k-q4_1-gemma3": (
        "gemma3",
        {
            **WIDE,
            "num_hidden_layers": 6,  # the sixth is the first that is not local
            "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
            "intermediate_size": 32,
            "query_pre_attn_scalar": 32,
        },
        "spm",
        [("token_embd", Q.Q6_K), ("attn_output", Q.Q4_1), ("ffn_down", Q.Q4_1), ("", Q.Q3_K)],
    ),
    "gguf-q2_k-iq4-phi3": (
        "phi3",
        {
            "hidden_size": 256,
            "num_hidden_layers": 1,
            "num_key_value_heads": 1,
            "original_max_position_embeddings": 256,
            **common.UNTIED,
        },
        "spm",
        [
            ("token_embd", Q.IQ4_NL),
            ("output.weight", Q.Q6_K),
            ("attn_qkv", Q.IQ4_XS),
            ("ffn_up", Q.Q2_K),
            ("", Q.IQ4_XS),
        ],
    ),
    "gguf-q5-bf16-ropefreqs-llama": (
        "llama",
        common.UNTIED,
        "bpe",
        [
            ("token_embd", Q.BF16),
            ("output.weight", Q.F16),
            ("attn_q", Q.Q5_0),
            ("attn_k", Q.Q5_1),
            ("attn_v", Q.BF16),
            ("ffn_up", Q.Q4_1),
            ("", Q.Q5_0),
        ],
    ),
    "gguf-mxfp4-nvfp4-qwen3": (
        "qwen3",
        {},
        "bpe",
        [("token_embd", Q.Q8_0), ("attn_", Q.NVFP4), ("blk.0.ffn_up", Q.NVFP4), ("", Q.MXFP4)],
    ),
    "gguf-q8_0-split-mistral": ("mistral", {"sliding_window": None}, "bpe", []),
}


def spm(folder: Path, dummy_prefix: bool) -> sentencepiece.SentencePieceProcessor:
    """A sentencepiece BPE of 300 pieces with byte fallback, saved as ``tokenizer.model``."""
    model = folder / "tokenizer"
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(common.TEXT * 4),
        model_prefix=str(model),
        model_type="bpe",
        vocab_size=common.VOCAB,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=dummy_prefix,
        minloglevel=2,
        bos_id=0,
        eos_id=1,
        pad_id=2,
        unk_id=3,
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    return sentencepiece.SentencePieceProcessor(model_file=f"{model}.model")


def convert(plain: Path, out: Path, *options: str) -> None:
    """Run llama.cpp's converter; the pre-tokenizer of this vocabulary is GPT-2's."""
    source = Path(os.environ["LLAMA_CPP"])
    code = (
        "import sys; import conversion.base as b, convert_hf_to_gguf as c\n"
        "b.TextModel.get_vocab_base_pre = lambda self, tokenizer: 'gpt-2'\n"
        "c.main()"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(plain), "--outfile", str(out), *options],
        check=True,
        cwd=source,
        env={**os.environ, "PYTHONPATH": f"{source}:{source / 'gguf-py'}"},
    )


def quantize(rows: NDArray[np.float32], kind: Q) -> NDArray[np.uint8]:
    """llama.cpp's ``ggml_quantize_chunk`` without an importance matrix: [N, bytes of a row]."""
    library = ctypes.CDLL(os.environ["GGML_BASE"])
    function = library.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    n, k = rows.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    source = np.ascontiguousarray(rows, np.float32)
    out = np.zeros((n, k // block * size), np.uint8)
    done = function(int(kind), source.ctypes.data, out.ctypes.data, 0, n, k, None)
    assert done == out.nbytes
    return out


def requantize(source: Path, target: Path, plan: list[tuple[str, Q]]) -> None:
    """Copy a float32 GGUF, its fields as they are, its matrices in the planned types."""
    reader = gguf.GGUFReader(source)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, arch)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=sub)
    for tensor in reader.tensors:
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, np.array(tensor.data))
            continue
        kind = next(t for part, t in plan if part in tensor.name)
        if tensor.shape[0] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = FALLBACK[kind]
        writer.add_tensor(tensor.name, quantize(np.array(tensor.data), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def dequantized(files: list[Path], base: Any) -> dict[str, Tensor]:
    """Dense weights under Hugging Face's names, each close to the one of ``base``."""
    found: dict[str, Tensor] = {}
    arch = ""
    for file in files:
        reader = gguf.GGUFReader(file)
        if "general.architecture" in reader.fields:  # only in the first part of a split
            arch = reader.fields["general.architecture"].contents()
        for tensor in reader.tensors:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
            found[tensor.name] = torch.from_numpy(np.array(values, np.float32))
    kind = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch)
    names = gguf.get_tensor_name_map(kind, base.config.num_hidden_layers)
    out: dict[str, Tensor] = {}
    for name, original in base.named_parameters():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        value = found[stored]
        if arch.startswith("gemma") and "norm" in name:
            value = value - 1
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            d = base.config.head_dim
            value = value.reshape(-1, d // 2, 2, value.shape[-1]).swapaxes(1, 2)
            value = value.reshape(original.shape)
        likeness = torch.cosine_similarity(value.flatten(), original.float().flatten(), 0)
        assert likeness > 0.9, (name, likeness)
        out[name] = value
    return out


def make(name: str) -> None:
    family, changes, vocabulary, plan = CASES[name]
    folder = common.fresh(name)
    base = common.base_model(family, seed=len(name), dtype=torch.float32, **changes)
    encode: Any = common.tokenizer().encode
    with tempfile.TemporaryDirectory() as temporary:
        plain = Path(temporary)
        common.save_plain(base, plain)
        if vocabulary == "spm":
            pieces = spm(plain, dummy_prefix=not family.startswith("gemma"))
            encode = lambda text: [pieces.bos_id(), *pieces.encode(text)]  # noqa: E731
        if plan:
            convert(plain, plain / "f32.gguf", "--outtype", "f32")
            requantize(plain / "f32.gguf", folder / "model.gguf", plan)
        else:
            options = ("--outtype", "q8_0", "--split-max-tensors", "8")
            convert(plain, folder / "model.gguf", *options)
    files = sorted(folder.glob("*.gguf"))
    model = common.twin(base.config, dequantized(files, base))
    common.write_expected(
        folder,
        model,
        how="gguf.dequantize of every tensor, names and row order back to Hugging Face's; "
        "transformers fp32, eager",
        tolerance="W",
        tools=["gguf"],
        encode=encode,
        converter="llama.cpp of llama-cpp-python 0.3.36: convert_hf_to_gguf, ggml_quantize_chunk",
        types=sorted({t.tensor_type.name for f in files for t in gguf.GGUFReader(f).tensors}),
    )


if __name__ == "__main__":
    for wanted in sys.argv[1:] or CASES:
        make(wanted)
