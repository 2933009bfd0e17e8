"""The library's own compressors and rules: the same numbers, bit for bit, and the same groups."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from scaled_folders import ct_config, llama_folder, quantized

from halfbyte.loaders.hf.methods.ct_rules import Rules, classes_of

pytestmark = pytest.mark.peer

TOKEN = {"num_bits": 8, "strategy": "token", "dynamic": True}
UNITS: list[dict[str, Any]] = [
    {"strategy": "group", "group_size": 32},
    {"strategy": "group", "group_size": 64},
    {"strategy": "channel"},
    {"strategy": "tensor"},
]
PACKED = [
    ("pack-quantized", {"num_bits": bits, "type": "int", "symmetric": symmetric} | unit)
    for bits, symmetric, unit in itertools.product(range(2, 9), (True, False), UNITS)
]
INT8 = [
    ("int-quantized", {"num_bits": 8, "type": "int", "symmetric": symmetric} | unit)
    for symmetric, unit in itertools.product((True, False), UNITS)
]
BLOCK = {"strategy": "block", "block_structure": [8, 64]}
FP8 = [
    (label, {"num_bits": 8, "type": "float"} | unit)
    for label in ("float-quantized", "naive-quantized")
    for unit in (*UNITS[2:], BLOCK)
]


def ranges(w_NK: torch.Tensor, unit: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest weight that share a scale."""
    n, k = w_NK.shape
    if unit["strategy"] == "tensor":
        return w_NK.min().reshape(1), w_NK.max().reshape(1)
    if unit["strategy"] != "block":
        parts = w_NK.view(n, -1, unit.get("group_size", k))
        return parts.amin(2), parts.amax(2)
    rows, columns = unit["block_structure"]
    padded = torch.nn.functional.pad(w_NK, (0, -k % columns, 0, -n % rows))
    parts = padded.view(-(-n // rows), rows, -1, columns)
    return parts.amin((1, 3)), parts.amax((1, 3))


@pytest.mark.parametrize(("label", "weights"), PACKED + INT8 + FP8, ids=str)
def test_weights_of_the_librarys_own_compressors(tmp_path, label, weights):
    peer = pytest.importorskip("compressed_tensors.compressors.base")
    args = pytest.importorskip("compressed_tensors.quantization")
    utils = pytest.importorskip("compressed_tensors.quantization.utils")
    kind = weights["type"]
    inputs = TOKEN | {"type": kind} if label in ("int-quantized", "float-quantized") else None
    own = args.QuantizationArgs(**weights)
    scheme = args.QuantizationScheme(
        targets=["Linear"],
        weights=own,
        input_activations=args.QuantizationArgs(**inputs) if inputs else None,
    )
    n, k = 20, 192
    w_NK = torch.randn(n, k)
    scale, zero = utils.calculate_qparams(*ranges(w_NK, weights), own)
    compressor = peer.BaseCompressor.get_value_from_registry(label)
    state = {"weight": w_NK, "weight_scale": scale, "weight_zero_point": zero}
    stored = compressor.compress(state, scheme)
    want = compressor.decompress(dict(stored), scheme)["weight"]
    config = ct_config(weights, input_activations=inputs, format=label)
    linear = quantized(llama_folder(tmp_path / "m", (n, k), stored, config))
    assert torch.equal(linear.dequantize(), want)


@pytest.mark.parametrize("name", ["NVFP4A16", "MXFP4A16"])
def test_4_bit_floats_of_the_librarys_own_compressors(tmp_path, name):
    """Its decompressor rounds to bfloat16 at the end; the steps before are in float32."""
    peer = pytest.importorskip("compressed_tensors.compressors.base")
    args = pytest.importorskip("compressed_tensors.quantization")
    utils = pytest.importorskip("compressed_tensors.quantization.utils")
    scheme = args.preset_name_to_scheme(name, ["Linear"])
    n, k = 24, 192
    w_NK = torch.randn(n, k)
    parts = w_NK.view(n, -1, scheme.weights.group_size)
    low, high = parts.amin(2), parts.amax(2)
    given = {}
    if name == "NVFP4A16":
        given = {"global_scale": utils.generate_gparam(w_NK.min(), w_NK.max())}
    scale, _ = utils.calculate_qparams(low, high, scheme.weights, **given)
    label = f"{name[:5].lower()}-pack-quantized"
    compressor = peer.BaseCompressor.get_value_from_registry(label)
    state = {"weight": w_NK, "weight_scale": scale}
    state |= {f"weight_{key}": value for key, value in given.items()}
    stored = compressor.compress(state, scheme)
    want = compressor.decompress(dict(stored), scheme)["weight"]
    assert want.dtype == torch.bfloat16
    unit = {"strategy": str(scheme.weights.strategy), "group_size": scheme.weights.group_size}
    config = ct_config({"num_bits": 4, "type": "float"} | unit, format=label)
    linear = quantized(llama_folder(tmp_path / "m", (n, k), stored, config))
    assert torch.equal(linear.dequantize(torch.bfloat16), want)


RULES = ["Linear", "Embedding", "Module", "linear", "lm_head", "re:lm_head", "re:.*"]
RULES += ["re:.*q_proj", "re:model.layers.[01].*", r"re:.*mlp\..*", "re:(?!.*mlp).*"]
RULES += ["model.layers.0.mlp.up_proj", r"re:^model\.layers\.(0|2)\.mlp\.(up|down)_proj$"]
PARTS = ("self_attn.q_proj", "mlp.down_proj", "mlp.up_proj")
NAMES = [f"model.layers.{i}.{part}" for i in range(3) for part in PARTS]


def test_the_librarys_own_rules():
    match = pytest.importorskip("compressed_tensors.utils.match")
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    linear, embedding = torch.nn.Linear(2, 2), torch.nn.Embedding(2, 2)
    for _ in range(500):
        targets = rng.sample(RULES, rng.randrange(1, 5))
        ignored = rng.sample(RULES, rng.randrange(3))
        ours = Rules("config", {rule: rule for rule in targets})
        ignore = Rules("config", dict.fromkeys(ignored, ""))
        for name in [*NAMES, "lm_head", "model.embed_tokens"]:
            module = embedding if name.endswith("embed_tokens") else linear
            found = match.match_targets(name, module, targets)
            assert ours.rule_for(name, classes_of(name)) == (found[0] if found else None)
            left_out = ignore.rule_for(name, classes_of(name)) is not None
            assert left_out == match.is_match(name, module, ignored)
