"""Block conversion: every type equals the format package's own dequantizer bit for bit."""

from __future__ import annotations

import re

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from halfbyte.errors import CheckpointError, UnsupportedModelError
from halfbyte.kernels.formats.canonical import QuantizedLinear, unpack_codes
from halfbyte.kernels.formats.compact import ByteScales
from halfbyte.loaders.gguf.blocks import convert_tensor
from halfbyte.loaders.gguf.types import BLOCK_TYPES, DENSE_TYPES, QUANTIZED_TYPES

TYPES = {t.name: t for t in BLOCK_TYPES.values()}
# Byte offsets of the float16 fields (scale, minimum) of a block.
HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "MXFP4": (),
    "NVFP4": (),
    **{name: (0,) for name in ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "Q1_0")},
    "IQ1_M": (),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}
# Scales of one byte at the start of a block, and the least byte that is not a number of the format.
# Scales of MXFP4 up to 2 ** 124, with which the largest weight, 6, is still a float32.
BYTES = {"MXFP4": (1, 252), "NVFP4": (4, 0x7F)}
EXPECTED = {  # bits, group, zero kind, scale dtype
    "Q4_0": (4, 32, "none", torch.float16),
    "Q4_1": (4, 32, "float", torch.float16),
    "Q5_0": (5, 32, "none", torch.float16),
    "Q5_1": (5, 32, "float", torch.float16),
    "Q8_0": (8, 32, "none", torch.float16),
    "Q2_K": (2, 16, "float", torch.float32),
    "Q3_K": (3, 16, "none", torch.float32),
    "Q4_K": (4, 32, "float", torch.float32),
    "Q5_K": (5, 32, "float", torch.float32),
    "Q6_K": (6, 16, "none", torch.float32),
    "IQ4_NL": (4, 32, "table", torch.float16),
    "IQ4_XS": (4, 32, "table", torch.float32),
    "MXFP4": (4, 32, "table", torch.float32),
    "NVFP4": (4, 16, "table", torch.float32),
    **{name: (4, 32, "table", torch.float32) for name in ("IQ2_XXS", "IQ3_XXS", "IQ3_S", "IQ1_S")},
    **{name: (4, 16, "table", torch.float32) for name in ("IQ2_XS", "IQ2_S", "IQ1_M")},
    **{name: (2, 128, "int", torch.float32) for name in ("TQ1_0", "TQ2_0")},
    "Q1_0": (2, 128, "int", torch.float16),
}


def fresh_rng() -> np.random.Generator:
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    return np.random.default_rng(seed)


def random_blocks(name: str, rows: int, blocks: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [rows, blocks, bytes]: any bits, but finite float16 fields of every magnitude."""
    raw = rng.integers(0, 256, (rows, blocks, TYPES[name].nbytes), dtype=np.uint8)
    for at in HALVES[name]:
        half = rng.integers(0, 1 << 16, (rows, blocks), dtype=np.uint16)
        half = np.where((half & 0x7C00) == 0x7C00, half & 0x83FF, half)  # no NaN, no infinity
        raw[..., at : at + 2] = half.astype("<u2")[..., None].view(np.uint8)
    count, bad = BYTES.get(name, (0, 1))
    raw[..., :count] %= bad
    if name == "IQ1_M":  # its float16 is in four nibbles; the highest has the sign and an exponent
        raw[..., 55] &= 0xBF
    return raw


def dequantized(name: str, raw: np.ndarray) -> np.ndarray:
    """uint8 [rows, bytes] by the package; signs with a scale, which it has no code for, by hand."""
    if name != "Q1_0":
        return dequantize(raw, gguf.GGMLQuantizationType[name])
    blocks = raw.reshape(len(raw), -1, 18)
    scales = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    signs = np.unpackbits(blocks[..., 2:], axis=-1, bitorder="little")
    return np.where(signs == 1, scales, -scales).reshape(len(raw), -1)


def bits_of(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).view(np.uint32)


@pytest.mark.exact
@pytest.mark.parametrize("name", QUANTIZED_TYPES)
@pytest.mark.parametrize("rows,blocks", [(1, 1), (1, 5), (7, 1), (257, 11)])
def test_dequantized_blocks_equal_the_package(name, rows, blocks):
    raw = random_blocks(name, rows, blocks, fresh_rng())
    kind = TYPES[name]
    shape = (rows, blocks * kind.elements)
    weight = convert_tensor("w", kind, shape, torch.from_numpy(raw).view(-1))
    assert isinstance(weight, QuantizedLinear)
    expected = dequantized(name, raw.reshape(rows, -1))
    assert np.array_equal(bits_of(weight.dequantize().numpy()), bits_of(expected))


@pytest.mark.parametrize("name", QUANTIZED_TYPES)
def test_canonical_form(name):
    kind, rows, blocks = TYPES[name], 6, 3
    k = blocks * kind.elements
    raw = random_blocks(name, rows, blocks, fresh_rng())
    weight = convert_tensor("w", kind, (rows, k), torch.from_numpy(raw).view(-1))
    assert isinstance(weight, QuantizedLinear)
    bits, group, zero, dtype = EXPECTED[name]
    assert (weight.format.bits, weight.format.group_size) == (bits, group)
    assert (weight.format.zero, weight.format.act) == (zero, None)
    doubled = tuple(value / 2 for value in gguf.quants.MXFP4.kvalues)
    table = doubled if name in BYTES else gguf.quants.IQ4_NL.kvalues
    if zero == "table" and name[:3] in ("IQ1", "IQ2", "IQ3"):
        # A magnitude with either sign, or shifted by an eighth either way; zeros stand for nothing.
        values = np.array(gguf.quants.__dict__[name.replace("1_M", "1_S")].grid_map, np.float32)
        both = (values + 0.125, values - 0.125) if "IQ1" in name else (values, -values)
        times = 8 if "IQ1" in name else 1
        assert set(weight.format.table) - {0.0} == {float(v) * times for half in both for v in half}
    else:
        assert weight.format.table == (table if zero == "table" else ())
    assert weight.shape == (rows, k)
    assert weight.codes.dtype == torch.uint8
    assert weight.codes.shape == (rows, k * bits // 8)
    assert weight.scales.dtype == dtype
    assert weight.scales.shape == (rows, k // group)
    assert (weight.zeros is None) == (zero not in ("float", "int"))
    if weight.zeros is not None and zero == "int":
        assert weight.zeros.shape == weight.scales.shape and (weight.zeros == 1).all()
    elif weight.zeros is not None:
        assert weight.zeros.dtype == dtype
        assert weight.zeros.shape == weight.scales.shape
    assert weight.codes.is_contiguous()
    assert weight.scales.is_contiguous()


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q8_0"])
def test_known_codes_come_back_in_order(name):
    # Codes 0, 1, 2, ... with scale 1, quantized by the package: catches any order mistake.
    bits = EXPECTED[name][0]
    low = -(1 << (bits - 1))
    codes = np.arange(64, dtype=np.int64) % (1 << bits)
    values = (codes + low).astype(np.float32)
    values[0] = values[32] = low if bits < 8 else -127  # fixes the block's scale to 1
    raw = gguf.quants.quantize(values.reshape(1, 64), gguf.GGMLQuantizationType[name])
    weight = convert_tensor("w", TYPES[name], (1, 64), torch.from_numpy(raw).view(-1))
    assert isinstance(weight, QuantizedLinear)
    assert weight.scales.tolist() == [[1.0, 1.0]]
    got = unpack_codes(weight.codes, bits, 64)[0].tolist()
    assert got == (values - low).astype(int).tolist()


@pytest.mark.exact
@pytest.mark.parametrize("name", DENSE_TYPES)
def test_dense_types_keep_their_bits_and_dtype(name):
    kind = TYPES[name]
    raw = fresh_rng().integers(0, 256, (3 * 5, kind.nbytes), dtype=np.uint8)
    raw[:, -1] &= 0xBB  # no exponent of ones only: no NaN, no infinity
    raw = raw.reshape(-1)
    tensor = convert_tensor("w", kind, (3, 5), torch.from_numpy(raw))
    assert isinstance(tensor, torch.Tensor)
    wanted = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[name]
    assert (tensor.dtype, tensor.shape) == (wanted, (3, 5))
    assert np.array_equal(tensor.view(torch.uint8).numpy().reshape(-1), raw)


@pytest.mark.parametrize("name", [*QUANTIZED_TYPES, *DENSE_TYPES])
def test_the_result_owns_its_memory(name):
    kind = TYPES[name]
    blocks = 2
    if name in HALVES:
        raw = random_blocks(name, 2, blocks, fresh_rng())
    else:
        raw = fresh_rng().integers(0, 60, (2, blocks, kind.nbytes), dtype=np.uint8)
    source = torch.from_numpy(raw.copy()).view(-1)
    weight = convert_tensor("w", kind, (2, blocks * kind.elements), source)
    before = as_dense(weight).clone()
    source.zero_()
    assert torch.equal(as_dense(weight), before)


def as_dense(weight) -> torch.Tensor:
    dense = weight.dequantize() if isinstance(weight, QuantizedLinear) else weight.float()
    return dense.nan_to_num()


@pytest.mark.parametrize("value", [0x7C00, 0xFC00, 0x7E00], ids=["inf", "-inf", "nan"])
@pytest.mark.parametrize("name", QUANTIZED_TYPES)
def test_scales_that_are_not_finite_are_refused(name, value):
    rng = fresh_rng()
    for at in HALVES[name]:
        raw = random_blocks(name, 4, 3, rng)
        raw[2, 1, at : at + 2] = np.array([value], dtype="<u2").view(np.uint8)
        flat = torch.from_numpy(raw).view(-1)
        shape = (4, 3 * TYPES[name].elements)
        with pytest.raises(CheckpointError) as caught:
            convert_tensor("blk.weight", TYPES[name], shape, flat)
        assert re.search(rf"tensor blk\.weight \({name}\): .* of row 2, group ", str(caught.value))
        assert "not finite" in str(caught.value)


@pytest.mark.parametrize(
    "name,byte,says",
    [
        ("MXFP4", 0xFF, "scale of row 2, group 1 is nan, and 1 of 12 are not finite"),
        ("NVFP4", 0x7F, "scale of row 2, group 7 is nan, and 1 of 48 are not finite"),
        ("NVFP4", 0x85, "scale of row 2, group 7 is the byte 0x85; expected at most 0x7E"),
        ("NVFP4", 0xFF, "scale of row 2, group 7 is the byte 0xFF; expected at most 0x7E"),
    ],
)
def test_bytes_that_are_no_scales_are_refused(name, byte, says):
    raw = random_blocks(name, 4, 3, fresh_rng())
    raw[2, 1, BYTES[name][0] - 1] = byte
    shape = (4, 3 * TYPES[name].elements)
    with pytest.raises(CheckpointError, match=re.escape(f"tensor blk.weight ({name}): {says}")):
        convert_tensor("blk.weight", TYPES[name], shape, torch.from_numpy(raw).view(-1))


@pytest.mark.exact
@pytest.mark.parametrize("name", BYTES)
def test_scales_of_a_byte_are_kept(name):
    rng = fresh_rng()
    raw, factor = random_blocks(name, 5, 4, rng), float(np.float32(rng.random() + 0.1))
    shape = (5, 4 * TYPES[name].elements)
    weight = convert_tensor("w", TYPES[name], shape, torch.from_numpy(raw).view(-1), factor)
    assert isinstance(weight, QuantizedLinear) and isinstance(weight.compact, ByteScales)
    kept = weight.compact.scales.view(torch.uint8).numpy()
    assert np.array_equal(kept, raw[..., : BYTES[name][0]].reshape(5, -1))
    assert weight.compact.form == TYPES[name].compact
    assert torch.equal(weight.compact.numbers()[0], weight.scales)
    bare = convert_tensor("w", TYPES[name], shape, torch.from_numpy(raw).view(-1))
    assert isinstance(bare, QuantizedLinear)
    # Only NVFP4 files have a factor beside a tensor; it multiplies its scales.
    times = factor if name == "NVFP4" else 1.0
    assert torch.equal(weight.scales, bare.scales * times)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", DENSE_TYPES)
@pytest.mark.parametrize("shape", [(3, 300), (900,)])
def test_dense_values_that_are_not_finite_are_refused(name, value, shape):
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[name]
    dense = torch.linspace(-1, 1, 900, dtype=dtype)
    dense[417] = float(value)
    at = "row 1, column 117" if len(shape) == 2 else "row 417, column 0"
    says = rf"tensor norm\.weight \({name}\): value of {at} is {value}, and 1 of 900 are not finite"
    with pytest.raises(CheckpointError, match=says):
        convert_tensor("norm.weight", TYPES[name], shape, dense.view(torch.uint8))


def test_zero_and_negative_scales_are_legal():
    raw = np.zeros((1, 1, 18), dtype=np.uint8)
    raw[..., :2] = np.array([-0.5], dtype=np.float16).view(np.uint8)
    weight = convert_tensor("w", TYPES["Q4_0"], (1, 32), torch.from_numpy(raw).view(-1))
    assert isinstance(weight, QuantizedLinear)
    assert weight.dequantize().unique().tolist() == [4.0]


def test_types_without_a_converter_are_refused_by_name():
    with pytest.raises(UnsupportedModelError, match=r"tensor w has type Q8_K; supported are F32,"):
        convert_tensor("w", TYPES["Q8_K"], (1, 256), torch.zeros(292, dtype=torch.uint8))


@pytest.mark.parametrize("value", [0x7C, 0xFC, 0x7E], ids=["inf", "-inf", "nan"])
def test_a_scale_in_four_nibbles_that_is_not_finite_is_refused(value):
    raw = random_blocks("IQ1_M", 4, 3, fresh_rng())
    for at, nibble in zip((53, 55), (value & 15, value >> 4), strict=True):
        raw[2, 1, at] = (raw[2, 1, at] & 15) | (nibble << 4)
    with pytest.raises(CheckpointError, match=r"tensor w \(IQ1_M\): scale of row 2, group 16 "):
        convert_tensor("w", TYPES["IQ1_M"], (4, 768), torch.from_numpy(raw).view(-1))


def test_quantized_vectors_are_refused():
    with pytest.raises(CheckpointError, match=r"tensor w of shape \[32\] has type Q4_0"):
        convert_tensor("w", TYPES["Q4_0"], (32,), torch.zeros(18, dtype=torch.uint8))
