"""Peaks of memory, of this process and of another one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from halfbyte.bench.process_memory import Peak, anonymous

if not anonymous():
    pytest.skip("no /proc", allow_module_level=True)


def test_the_peak_sees_memory_that_is_gone_again():
    peak = Peak()
    before = anonymous()
    with peak:
        block = torch.ones(64 << 20, dtype=torch.uint8)
        for _ in range(20):
            block += 1
        del block
    assert peak.value - before > 48 << 20


def test_the_peak_of_another_process(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(32 << 20))
    code = (
        "import mmap, sys, time\n"
        "block = bytearray(64 << 20)\n"
        "with open(sys.argv[1], 'rb') as file:\n"
        "    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "    sum(mapped[i] for i in range(0, len(mapped), 4096))\n"
        "time.sleep(0.1)\n"
        "del block\n"
        "print('there', flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        with Peak(process.pid, 0.001) as peak:
            assert process.stdout is not None and process.stdout.readline() == "there\n"
            now = anonymous(process.pid)
        process.communicate("\n")
    assert peak.value > 64 << 20 > now
    # A mapped file is resident, not anonymous.
    assert peak.resident > peak.value + (24 << 20)
    assert anonymous(process.pid) == 0
