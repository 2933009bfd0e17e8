"""Clocks of made-up SASS, worked out by hand."""

from __future__ import annotations

import pytest

from halfbyte.kernels.codegen.clocks import FAR_CLOCKS, SHARED_CLOCKS, loop_clocks, whole_clocks


def sass(*lines: tuple[str, int, int, int]) -> str:
    """Text as nvdisasm prints it, of (instruction, stall, barrier that is set or 7, mask)."""
    text = []
    for number, (line, stall, sets, waits) in enumerate(lines):
        if line.endswith(":"):
            text.append(line)
            continue
        word = stall << 41 | sets << 46 | 7 << 49 | waits << 52
        text.append(f"        /*{number:04x}*/     {line} ;    /* 0x{0:016x} */")
        text.append(f"{'':40}/* 0x{word:016x} */")
    return "\n".join(text)


def test_a_warp_alone_waits_for_stalls_and_barriers():
    # The load issues at 0 and stalls 2 clocks; the sum waits for its barrier, then 4 clocks.
    assert whole_clocks(
        sass(("LDS R0, [R1]", 2, 0, 0), ("FADD R0, R0, R0", 4, 7, 1), ("EXIT", 5, 7, 0))
    ) == (SHARED_CLOCKS + 1 + 4 + 5)


def test_memory_takes_longer_than_shared_memory():
    line = ("FADD R0, R0, R0", 1, 7, 1)
    near = whole_clocks(sass(("LDS R0, [R1]", 1, 0, 0), line))
    far = whole_clocks(sass(("LDG.E R0, desc[UR4][R2.64]", 1, 0, 0), line))
    assert far - near == FAR_CLOCKS - SHARED_CLOCKS - 1


@pytest.mark.parametrize(("warps", "clocks"), [(1, 40), (2, 40), (4, 64), (8, 128)])
def test_warps_share_the_tensor_core(warps, clocks):
    # Two products of 8 clocks each in the pipe; alone a warp stalls for 40 clocks.
    loop = sass(
        (".L_x_1:", 0, 0, 0),
        ("HMMA.16816.F32 R0, R4, R8, R0", 15, 7, 0),
        ("HMMA.16816.F32 R0, R4, R8, R0", 15, 7, 0),
        ("IADD3 R1, R1, 1, RZ", 5, 7, 0),
        ("@P0 BRA `(.L_x_1)", 5, 7, 0),
    )
    assert loop_clocks(loop, warps, 20) == pytest.approx(clocks, abs=3)


def test_a_wait_for_products_of_a_warp_group():
    wait = ("WARPGROUP.DEPBAR.LE gsb0, 0x0", 1, 7, 0)
    product = ("HGMMA.64x128x16.F32 R24, R4, gdesc[UR4], R24, gsb0", 1, 7, 0)
    # 128 columns take 64 clocks of the pipe and 33 more until the sums are there.
    assert whole_clocks(sass(product, wait)) == 64 + 33 + 1


def test_a_kernel_without_a_loop_has_no_clocks_of_one():
    with pytest.raises(ValueError, match="no loop"):
        loop_clocks(sass(("EXIT", 5, 7, 0)), 1)
