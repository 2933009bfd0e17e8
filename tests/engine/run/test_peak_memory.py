"""Peak resident size of a whole process that loads the default model and fills its KV cache."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# What the interpreter, torch, the tokenizer and one layer's copies may take beside file and KV.
ALLOWANCE = 450 * 10**6

SCRIPT = """
import json, sys
from halfbyte import Engine, SamplingParams

def peak():
    # Not ru_maxrss, which remembers the size of the process that started this one.
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1])

engine = Engine(sys.argv[1], max_context=512, max_batch=1, prefix_cache=False)
loaded = peak()
engine.generate([[7] * 504], SamplingParams(max_tokens=8, ignore_eos=True))
kv = engine.memory.blocks * engine.config.block_size * engine.memory.bytes_per_token
print(json.dumps({"loaded": loaded, "peak": peak(), "kv": kv}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_peak_is_file_and_cache_and_a_little(smollm2: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(smollm2)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    file = smollm2.stat().st_size
    assert found["loaded"] * 1024 <= file + ALLOWANCE, found
    assert found["peak"] * 1024 <= file + found["kv"] + ALLOWANCE, found
