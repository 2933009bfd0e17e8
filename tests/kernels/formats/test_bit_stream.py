"""The bit stream of codes against numpy's own bit packing."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch

from halfbyte.kernels.formats.bit_stream import SERIAL, pack_codes, unpack_codes


def stream(codes_NK: np.ndarray, bits: int) -> np.ndarray:
    """Bits of each code, lowest first, one code after another, eight to a byte."""
    single = np.unpackbits(codes_NK[..., None], axis=-1, bitorder="little")[..., :bits]
    return np.packbits(
        single.reshape(len(codes_NK), codes_NK.shape[1] * bits), axis=-1, bitorder="little"
    )


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("k", [1, 7, 8, 9, 63, 64, 100, 1000, 4096])
def test_streams_are_those_of_numpy(bits, k):
    rng = np.random.default_rng(seed := random.randrange(1 << 32))
    logging.getLogger(__name__).info("seed %d", seed)
    # Several chunks at the last width, the last of them short; also no row at all.
    for n in (0, 1, 3, SERIAL // 512 * 2 + 5 if k == 4096 else 17):
        codes = rng.integers(0, 1 << bits, (n, k), dtype=np.uint8)
        packed = pack_codes(torch.from_numpy(codes), bits)
        assert packed.is_contiguous() and packed.shape == (n, -(-k * bits // 8))
        assert np.array_equal(packed.numpy(), stream(codes, bits))
        assert np.array_equal(unpack_codes(packed, bits, k).numpy(), codes)


@pytest.mark.parametrize("bits", range(2, 8))
def test_memory_of_any_layout_is_read(bits):
    whole = torch.randint(0, 1 << bits, (9, 70), dtype=torch.uint8)
    for codes in (whole[1:, 3:67], whole.view(-1)[1:601].view(15, 40), whole.T):
        packed = pack_codes(codes, bits)
        assert np.array_equal(packed.numpy(), stream(codes.contiguous().numpy(), bits))
        # Rows out of a wider matrix, and bits behind the last code that are no zeros.
        wide = torch.cat((packed, packed.new_full((len(packed), 3), 255)), dim=1)
        strided = wide[:, : packed.shape[1]]
        assert torch.equal(unpack_codes(strided, bits, codes.shape[1]), codes)
