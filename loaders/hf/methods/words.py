"""Codes packed in int32 words, as GPTQ and AWQ store them.

A word is a little-endian group of 32 bits with field 0 lowest, so a run of words *is* a bit
stream, and its bytes are the canonical ones. Most of what is here only moves bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....kernels.formats.canonical import pack_codes, unpack_codes

# Output rows converted at once: keeps the unpacked copies small.
CONVERTED_ROWS = 512


def stream_from_columns(words_RN: Tensor, bits: int, k: int) -> Tensor:
    """Words packed along K, int32 [R, N], to the canonical stream uint8 [N, K * bits / 8]."""
    width = -(-k * bits // 8)
    codes = turned(words_RN).view(torch.uint8)[:, :width].contiguous()
    return clear_tail(codes, bits, k)


def clear_tail(codes: Tensor, bits: int, k: int) -> Tensor:
    """Set the bits of uint8 [N, X] behind code ``k`` of each row to 0, in place."""
    used = k * bits % 8
    if used:
        codes[:, -1] &= (1 << used) - 1
    return codes


def reorder(codes: Tensor, bits: int, order: Tensor) -> None:
    """Move column ``order[j]`` of the canonical stream uint8 [N, K * bits / 8] to place j."""
    for rows in codes.split(CONVERTED_ROWS):
        block = unpack_codes(rows, bits, order.numel())
        rows.copy_(pack_codes(block.index_select(1, order), bits))


def dense(
    codes: Tensor, bits: int, scales: Tensor, zeros: Tensor | None, group_of: Tensor
) -> Tensor:
    """Float32 [N, K] of a canonical stream whose columns have the groups int64 [K].

    Scales and zeros are [N, G], in any order of groups; without zeros they are the middle code.
    """
    n, k = codes.shape[0], group_of.numel()
    out = torch.empty(n, k, dtype=torch.float32)
    for start in range(0, n, CONVERTED_ROWS):
        rows = slice(start, start + CONVERTED_ROWS)
        block = unpack_codes(codes[rows], bits, k).float()
        if zeros is None:
            block -= 1 << (bits - 1)
        else:
            block -= zeros[rows].float().index_select(1, group_of)
        out[rows] = block * scales[rows].float().index_select(1, group_of)
    return out


def fields(words_GW: Tensor, bits: int, n: int) -> Tensor:
    """The first ``n`` fields of each row of int32 [G, W]: uint8 [G, N]."""
    stream = words_GW.contiguous().view(torch.uint8)
    return unpack_codes(stream[:, : -(-n * bits // 8)], bits, n)[:, :n]


def fields_plus_one(words_GW: Tensor, bits: int, n: int) -> Tensor:
    """The fields of int32 [G, W], each plus 1: uint8 [G, N].

    The writers of GPTQ v1 subtract 1 from whole words, so where a field was 0 the borrow runs
    into the next one. Adding to whole words undoes that exactly. Codes of 3 bits straddle words;
    there the writers wrap each field by itself.
    """
    if bits == 3:
        return (fields(words_GW, bits, n) + 1) & 7
    ones = sum(1 << shift for shift in range(0, 32, bits))
    total = (words_GW.to(torch.int64) + ones) & 0xFFFFFFFF
    return fields(_as_int32(total), bits, n)


def _as_int32(values: Tensor) -> Tensor:
    """int64 from 0 to 2**32 - 1, [any shape], with the same low 32 bits as int32."""
    return torch.where(values >= 1 << 31, values - (1 << 32), values).to(torch.int32)


def turned(stored_GN: Tensor) -> Tensor:
    """[G, N] as [N, G] in memory of its own, which ``t().contiguous()`` is not where G is 1."""
    # Not a clone of ``t()``: only into a fresh matrix does torch copy block by block.
    return torch.empty(stored_GN.shape[::-1], dtype=stored_GN.dtype).copy_(stored_GN.t())


def interleaved_to_stream(words_KC: Tensor) -> Tensor:
    """AWQ's gemm packing, int32 [K, N / 8], to the canonical 4-bit stream uint8 [N, K / 2].

    Nibble i of a word holds column [0, 2, 4, 6, 1, 3, 5, 7][i] of its eight. Two rows of words
    become bytes four at a time, which spares unpacking.
    """
    k, columns = words_KC.shape
    if k % 2:
        words_KC = torch.cat((words_KC, words_KC.new_zeros(1, columns)))
    codes = torch.empty(columns, 8, -(-k // 2), dtype=torch.uint8)
    low = 0x0F0F0F0F
    for start in range(0, columns, CONVERTED_ROWS):
        block = words_KC[:, start : start + CONVERTED_ROWS].t()
        even, odd = turned(block[:, 0::2].t()), turned(block[:, 1::2].t())
        for column, mixed in (
            (0, even & low | (odd & low) << 4),
            (2, (even >> 4) & low | odd & ~low),
        ):
            bytes_CM4 = mixed.view(torch.uint8).view(*even.shape, 4)
            for byte, step in enumerate((0, 4, 1, 5)):
                codes[start : start + CONVERTED_ROWS, column + step] = bytes_CM4[:, :, byte]
    return codes.flatten(0, 1)


def interleaved_fields(words_GC: Tensor, places: tuple[int, ...]) -> Tensor:
    """Nibbles of int32 [G, N / 8] in the order of columns: uint8 [G, N]."""
    nibbles = [((words_GC >> (4 * place)) & 15).to(torch.uint8) for place in places]
    return torch.stack(nibbles, dim=2).flatten(1)


def fast_to_stream(words_RK: Tensor) -> Tensor:
    """AWQ's gemv_fast packing, int16 [N / 4, K], to the canonical stream uint8 [N, K / 2].

    Undone from the inside out: four nibbles a word; 64 columns of four rows side by side; the
    even columns of each 8 before the odd ones; and the pairs of each 32 columns, [4, 4, 2], with
    the first two axes swapped. K is a multiple of 64.
    """
    r, k = words_RK.shape
    codes = torch.empty(r * 4, k // 2, dtype=torch.uint8)
    step = CONVERTED_ROWS // 4
    for start in range(0, r, step):
        block = words_RK[start : start + step]
        nibbles = torch.stack([((block >> s) & 15).to(torch.uint8) for s in (0, 4, 8, 12)], dim=2)
        rows = nibbles.view(-1, k // 64, 4, 64).transpose(1, 2).reshape(-1, k // 8, 2, 4)
        pairs = rows.transpose(2, 3).reshape(-1, k // 32, 4, 4, 2)
        q_NK = pairs.transpose(2, 3).reshape(-1, k)
        codes[start * 4 : start * 4 + q_NK.shape[0]] = pack_codes(q_NK, 4)
    return codes
