"""Small faults, one at a time, each of which the tests of its folder must notice.

They are of the kinds that were made, or that were put in by hand and not noticed: borders off by
one, a phase that is forgotten behind a split, a rounding too many, a sign, a tail.
"""

from __future__ import annotations

from dataclasses import dataclass

_TRITON = "tests/kernels/triton/test_triton_"
_DRAWN = f"{_TRITON}drawn.py"
W4A16 = (_DRAWN, f"{_TRITON}w4a16_kernels.py")
FRAGMENTS = (_DRAWN, f"{_TRITON}w8a16.py", f"{_TRITON}codebook.py")
W8A8 = (_DRAWN, f"{_TRITON}w8a8.py")
ATTENTION = (_DRAWN, f"{_TRITON}attention.py")
EXPERTS = (f"{_TRITON}experts.py",)
W4A8 = (f"{_TRITON}w4a8.py",)
FUSED = (f"{_TRITON}fused.py",)
SAMPLING = (f"{_TRITON}sampling.py",)


def _cpu(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/kernels/test_cpu_{name}.py" for name in names)


@dataclass(frozen=True, slots=True)
class KernelFault:
    """A change that makes a kernel wrong.

    Attributes:
        path: the file below ``kernels/``.
        right: text that occurs in it exactly once.
        wrong: what stands there instead.
        tests: files of tests, the likeliest to notice first.
    """

    path: str
    right: str
    wrong: str
    tests: tuple[str, ...]


_LATE = "w4a16/kernel_late.py"
_DIRECT = "w4a16/kernel_direct.py"
_PARTS = "device/parts.py"
_GEMM8 = "w8a8/kernel.py"
_DECODE = "attention/decode_kernel.py"
_PREFILL = "attention/prefill_kernel.py"
_TILE = "attention/tile.py"
_EXPERTS = "experts/kernel.py"
_ROPE = "fused/rope_kernel.py"

_FP4 = _cpu("compact", "linear")

FAULTS = (
    KernelFault(
        _DECODE, "(token.to(tl.int64) * KV_HEADS + head) * (", "pair.to(tl.int64) * (", ATTENTION
    ),
    KernelFault(_DECODE, "first_token + pair // KV_HEADS", "pair // KV_HEADS", ATTENTION),
    KernelFault(_DECODE, "if split == 0:", "if split == 1:", ATTENTION),
    KernelFault(
        _DECODE, "tl.store(count_ptr + pair, 0)", "tl.store(count_ptr + pair, 1)", ATTENTION
    ),
    KernelFault(_DECODE, "+ (start + j) < live)", "+ (start + j) < live - 1)", ATTENTION),
    KernelFault(_DECODE, "partial_ptr + start * (GROUP * DIM)", "partial_ptr", ATTENTION),
    KernelFault(_DECODE, "begin + tl.arange(0, HEADS)[", "tl.arange(0, HEADS)[", ATTENTION),
    KernelFault(_LATE, "(i + 1) % SLICES == 0", "(i + 1 - first) % SLICES == 0", W4A16),
    KernelFault(
        _LATE, "first * PER_SLICE // SLICES * width", "(first + 1) // SLICES * width", W4A16
    ),
    KernelFault(
        _LATE,
        "stop = tl.minimum(first + tiles_split, tiles_k)",
        "stop = tl.minimum(first + tiles_split, tiles_k - 1)",
        W4A16,
    ),
    KernelFault(_LATE, "mask=(k + 96 < left)", "mask=(k + 64 < left)", W4A16),
    KernelFault(
        _LATE, "n3 = e3 if PER_SLICE > 2 else e0", "n3 = e2 if PER_SLICE > 2 else e0", W4A16
    ),
    KernelFault(_DIRECT, "row = i * PER_SLICE", "row = (i - first) * PER_SLICE", W4A16),
    KernelFault(
        _DIRECT,
        "w = scaled(p[j], entries, j, SHIFT, ADDITIVE, PTX)\n            if",
        "w = scaled(p[j], entries, 0, SHIFT, ADDITIVE, PTX)\n            if",
        W4A16,
    ),
    KernelFault(_DIRECT, "((first_atom + atom)", "((atom)", W4A16),
    KernelFault(_DIRECT, "mask=(k + begin < left)", "mask=(k + begin <= left)", W4A16),
    KernelFault(_DIRECT, "tl.join(even, w)", "tl.join(w, even)", W4A16),
    KernelFault(_DIRECT, "begin = 32 * (j + 1 - PLANES)", "begin = 32 * j", W4A16),
    KernelFault(_PARTS, "+ (start + j) < splits", "+ (start + j) < splits - 1", W4A16),
    KernelFault(_PARTS, "for first in range(0, live, STEP):", "for first in range(0, 1):", W4A16),
    KernelFault(_PARTS, "ptrs += PARTS * SIZE", "ptrs += SIZE", W4A16),
    KernelFault(_PARTS, "== parts - 1", "== parts - 2", (*ATTENTION, *W4A16)),
    KernelFault(_PARTS, "live = tl.minimum(M - begin, BM)", "live = tl.minimum(M, 1)", W4A16),
    KernelFault(_PARTS, "tl.store(count_ptr + slot, 0)", "tl.store(count_ptr + slot, 1)", W4A16),
    KernelFault(
        _PARTS,
        "* SIZE + cell, acc, mask=there",
        "* SIZE + cell, acc.to(tl.float16).to(tl.float32), mask=there",
        W4A16,
    ),
    KernelFault(
        _PARTS, "tl.where(rows % 128 < 64, 0, N)", "tl.where(rows % 128 <= 64, 0, N)", W4A16
    ),
    KernelFault(_PARTS, "gate * tl.sigmoid(gate) * up", "up * tl.sigmoid(up) * gate", W4A16),
    KernelFault(_PARTS, "p3 = (((swapped >> 4)", "p3 = (((swapped >> 3)", W4A16),
    KernelFault(_PARTS, "(n < N)[None, :]", "(n <= N)[None, :]", W4A16),
    KernelFault(
        "fragments/kernel.py",
        "(first * ENTRIES // SLICES).to(tl.int64)",
        "(first * 0).to(tl.int64)",
        FRAGMENTS,
    ),
    KernelFault(
        "fragments/kernel.py",
        "repeat_rows(total, BN), o_matrix",
        "repeat_rows(total, BN), -o_matrix",
        FRAGMENTS,
    ),
    KernelFault("fragments/kernel.py", "(k + BEGIN < left)", "(k + BEGIN <= left)", FRAGMENTS),
    KernelFault("fragments/kernel.py", "s[g // 4], g % 4", "s[0], g % 4", FRAGMENTS),
    KernelFault("fragments/decode.py", "byte << 23, 0x400000)", "byte << 23, 0)", FRAGMENTS),
    KernelFault("w8a8/op.py", "1 if fixed else m", "m", W8A8),
    KernelFault(_GEMM8, "acc -= zx[:, None]", "acc -= SPLIT * zx[:, None]", W8A8),
    KernelFault(
        _GEMM8,
        "arrives_last(count_ptr + pid, SPLIT)",
        "arrives_last(count_ptr + pid, SPLIT - 1)",
        W8A8,
    ),
    KernelFault(
        _GEMM8, "for s in tl.static_range(1, SPLIT)", "for s in tl.static_range(2, SPLIT)", W8A8
    ),
    KernelFault(_GEMM8, "inside = rk[None, :] < K - k", "inside = rk[None, :] < K - k - 1", W8A8),
    KernelFault("device/rounding.py", "- low, 255.0)", "- low, 254.0)", W8A8),
    KernelFault("device/rounding.py", "row, scale + poison)", "row, scale)", W8A8),
    KernelFault(_GEMM8, "sw_ptr += before", "sw_ptr += expert", EXPERTS),
    KernelFault(_LATE, "tile_w += expert * tl.num_programs(0)", "tile_w += expert", EXPERTS),
    KernelFault(
        "fragments/kernel.py", "bias_ptr += expert.to(tl.int64) * N", "bias_ptr += N", EXPERTS
    ),
    KernelFault(_EXPERTS, "tl.cumsum(mine, 0) - 1", "tl.cumsum(mine, 0) - 2", EXPERTS),
    KernelFault(_EXPERTS, "tl.exp(best - top) / mass", "tl.exp(best - top)", EXPERTS),
    KernelFault(_EXPERTS, "before += tl.where(i < chunk", "before += tl.where(i <= chunk", EXPERTS),
    KernelFault(_EXPERTS, "end - room + before", "end - total + before", EXPERTS),
    KernelFault("fused/norm_kernel.py", "poison = tl.sum(y * 0.0, 0)", "poison = 0.0", FUSED),
    KernelFault(
        "fused/activation_kernel.py",
        "high = tl.maximum(high, y if",
        "high = tl.maximum(0, y if",
        FUSED,
    ),
    KernelFault("device/rounding.py", "12582912.0)", "8388608.0)", W8A8),
    KernelFault(
        _DECODE,
        "last = (position + PAGE) // PAGE",
        "last = (position + PAGE - 1) // PAGE",
        ATTENTION,
    ),
    KernelFault(
        _DECODE,
        "following = tl.load(table + page + 1, mask=page + 1 < end",
        "following = tl.load(table + page + 1, mask=page + 2 < end",
        ATTENTION,
    ),
    KernelFault(
        _DECODE, "position + 1 - window, 0)", "position + 1 + PAGE - window, 0)", ATTENTION
    ),
    KernelFault(_DECODE, "(last - first + per - 1) // per", "(last - first) // per", ATTENTION),
    KernelFault(_DECODE, "mass = mass * shrink", "mass = mass", ATTENTION),
    KernelFault(_TILE, "- tokens[None, :] < window)", "- tokens[None, :] <= window)", ATTENTION),
    KernelFault(_TILE, "mask=written[:, None] & dims", "mask=dims", ATTENTION),
    KernelFault(_TILE, "total * -code_bias(tile.dtype, QUANT)", "total * -1024.0", ATTENTION),
    KernelFault(_TILE, "odd -= bias", "odd -= bias * 1.001", ATTENTION),
    KernelFault(_TILE, "dot(q[1], tl.trans(k_odd)", "dot(q[0], tl.trans(k_odd)", ATTENTION),
    KernelFault(_TILE, "interleave(acc[0], acc[1])", "interleave(acc[1], acc[0])", ATTENTION),
    KernelFault(_TILE, "(8 if QUANT else 16)", "16", ATTENTION),
    KernelFault("device/bits.py", "high = (x >> 8)", "high = (x >> 7)", ATTENTION),
    KernelFault("device/bits.py", "u = x ^ -0x7F80", "u = x ^ -0x8000", ATTENTION),
    KernelFault(_TILE, "written, other=0.0)", "tokens >= 0, other=0.0)", ATTENTION),
    KernelFault(
        _PREFILL,
        "(tl.maximum(final + 1 - window, 0) + PAGE - 1) // PAGE",
        "(tl.maximum(final + 1 - window, 0)) // PAGE",
        ATTENTION,
    ),
    KernelFault(
        _PREFILL, "(position + 1) // PAGE, full_begin", "(final + 1) // PAGE, full_begin", ATTENTION
    ),
    KernelFault("fused/norm_kernel.py", "* (1.0 / D)", "* (1.0 / (D + 1))", FUSED),
    KernelFault(_ROPE, "b * cos + a * sin", "b * cos - a * sin", FUSED),
    KernelFault(_ROPE, "tl.where(slot >= 0, ALL, 0)", "tl.where(slot >= -1, ALL, 0)", FUSED),
    KernelFault(
        _ROPE,
        "largest = tl.maximum(largest, tl.max(tl.abs(narrow(rest",
        "largest = tl.minimum(largest, tl.max(tl.abs(narrow(rest",
        FUSED,
    ),
    KernelFault("fused/activation_kernel.py", "0.044715 * x", "0.04 * x", FUSED),
    KernelFault(
        "sampling/kernel.py", "tl.load(c_ptr + token) + 1)", "tl.load(c_ptr + token) + 2)", SAMPLING
    ),
    KernelFault("sampling/kernel.py", "bits ^ 0x7FFFFFFF, bits)", "bits, bits)", SAMPLING),
    KernelFault("sampling/kernel.py", "+ (0x7FFFFFFF - token)", "+ token", SAMPLING),
    KernelFault("sampling/kernel.py", "tl.where(value == 0.0, 0.0, value)", "value", SAMPLING),
    KernelFault(
        "sampling/kernel.py", "store(count_ptr + row, 0)", "store(count_ptr + row, 1)", SAMPLING
    ),
    KernelFault("sampling/op.py", "size % 8 for size", "size % 1 for size", SAMPLING),
    KernelFault("sampling/parts.py", "(token + 1).to(tl.uint64)", "token.to(tl.uint64)", SAMPLING),
    KernelFault("sampling/parts.py", "tl.where(output > 0.0, 1.0, 0.0)", "output", SAMPLING),
    KernelFault(
        "cpu/attention.c",
        "? position + 1 - a->window : 0",
        "? position - a->window : 0",
        _cpu("attention"),
    ),
    KernelFault("cpu/attention.c", "return left >= 7 ||", "return left > 7 ||", _cpu("attention")),
    KernelFault(
        "cpu/draw.c", "output > 0 ? by->presence", "output > 1 ? by->presence", _cpu("draw")
    ),
    KernelFault("cpu/draw.c", "by_mass) >= target) high", "by_mass) > target) high", _cpu("draw")),
    KernelFault("cpu/draw.c", "mix(key + (u64)(token + 1)", "mix(key + (u64)token", _cpu("draw")),
    KernelFault(
        "cpu/elementwise.c",
        "for (; i < d; i++) sum = f_fma",
        "for (; i + 1 < d; i++) sum = f_fma",
        _cpu("elementwise"),
    ),
    KernelFault("cpu/halfbyte.h", "under = s < -88.0f", "under = s < -8.0f", _cpu("elementwise")),
    KernelFault(
        "cpu/elementwise.c",
        "int value = h >= heads + kv_heads",
        "int value = h > heads + kv_heads",
        _cpu("elementwise", "attention"),
    ),
    KernelFault("cpu/integer.c", "return own->half[h];", "return own->half[0];", _cpu("rounded")),
    KernelFault("cpu/integer.c", ": own->scaled_half[h]", ": own->scaled_half[0]", _cpu("rounded")),
    KernelFault(
        "cpu/integer.c", "r->w->center + byte_shift(r->w->codes)", "r->w->center", _cpu("rounded")
    ),
    KernelFault(
        "cpu/linear.c",
        "x->sums + (size_t)own * x->chunks * 3",
        "x->sums + (size_t)own * x->chunks",
        _cpu("linear"),
    ),
    KernelFault(
        "cpu/linear.c", "from[m][16 * h + 4 * i + j]", "from[m][4 * i + j]", _cpu("linear")
    ),
    KernelFault(
        "cpu/inputs.c", "bits + 0x7FFFF +", "bits + 0x80000 +", _cpu("inputs", "quantized_inputs")
    ),
    KernelFault("cpu/inputs.c", "/ 255.0f", "/ 256.0f", _cpu("inputs", "quantized_inputs")),
    KernelFault(
        "cpu/inputs.c",
        "memset(out + width, 0, (size_t)(stride - width));",
        ";",
        _cpu("inputs", "quantized_inputs"),
    ),
    KernelFault(
        "cpu/inputs.c", "y > 127.0f, vf_set(127), y", "y > 126.0f, vf_set(126), y", _cpu("rounded")
    ),
    KernelFault("cpu/words.c", "left > 0 ? (1u << (8 * left)) - 1 : 0", "~0u", _cpu("pack")),
    KernelFault(
        "cpu/words.c", "if (at % 32 + bits > 32)", "if (at % 32 + bits > 33)", _cpu("pack")
    ),
    KernelFault("cpu/blocks.c", "(high[e] >> 6) << 4", "(high[e] >> 6) << 3", _cpu("pack")),
    KernelFault("cpu/moments.c", "((vu)code & 255)", "((vu)code & 127)", _cpu("calibrator")),
    KernelFault("cpu/fit.c", "(table[i] + table[i + 1]) * 0.5f", "table[i + 1]", _cpu("fit")),
    KernelFault(
        "cpu/uniform.c",
        "vf_max2(zero - 1.0f, none)",
        "vf_max2(zero, none)",
        _cpu("calibrator", "fit"),
    ),
    KernelFault(
        "cpu/columns.c",
        "w[j] -= error * factor[j];",
        "w[j] += error * factor[j];",
        _cpu("compact", "calibrator", "fit"),
    ),
    KernelFault(
        "cpu/weight.h",
        "w->divides ? vf_load(to) / factor",
        "w->divides ? vf_load(to) * factor",
        _FP4,
    ),
    KernelFault(
        "cpu/weight.h", "h <= w->halves; h++)\n        for", "h < 1; h++)\n        for", _FP4
    ),
    KernelFault("cpu/weight.h", "(vu)(x == 0) & 0x00400000u", "(vu)(x == 0) & 0u", _FP4),
    # Sums of integers over pieces, a scale for each token.
    KernelFault("cpu/integer.c", "total += own[-i].sum;", "total += own->sum;", _cpu("tokens")),
    KernelFault("cpu/integer.c", "(c & (piece - 1)) + 1", "piece", _cpu("tokens")),
    KernelFault(
        "cpu/integer.c",
        "if (w->piece > 1) depth =",
        "if (w->piece < 1) depth =",
        _cpu("tokens"),
    ),
    KernelFault(
        "cpu/integer.c", "op->factors + row, y, rows", "op->factors, y, rows", _cpu("tokens")
    ),
    KernelFault(
        "cpu/inputs.c", "(i == begin || c == 0)", "(i == begin)", _cpu("tokens", "rounded")
    ),
    KernelFault("w4a8/kernel.py", "(i + 1) % SLICES == 0", "(i + 1 - first) % SLICES == 0", W4A8),
    KernelFault(
        "w4a8/kernel.py", "first * PIECES // SLICES * width", "first * PIECES * width", W4A8
    ),
    KernelFault(
        "w4a8/kernel.py", "-4 * SHIFT if SHIFT > 0 else 4", "-4 * 8 if SHIFT > 0 else 4", W4A8
    ),
    KernelFault("w4a8/kernel.py", "if not SIGNED and SHIFT < 0:", "if SHIFT < 0:", W4A8),
    KernelFault("w4a8/kernel.py", "tl.load(scales_ptr + m)", "tl.load(scales_ptr)", W4A8),
    KernelFault("w4a8/codes.py", "(words << 12) & 0x30003000", "(words << 12) & 0x10001000", W4A8),
    KernelFault("device/column_order.py", "c % 2 * 64", "c // 2 % 2 * 64", W4A8),
    KernelFault(
        "w8a8/kernel.py",
        '-127.0 if TOP == 127.0 and ORDER != "plain" else',
        "-128.0 if False else",
        W4A8,
    ),
)
