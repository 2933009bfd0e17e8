"""Time of the host: launches are counted and timed, and nothing is compiled for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from halfbyte.kernels.codegen.environment import compiling_environment


def test_steps_are_timed_with_their_launches(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    environment = compiling_environment()
    command = [sys.executable, "-m", "halfbyte.bench.host_time", "--format", "NF4", "--layers", "2"]
    done = subprocess.run(
        [*command, "--rounds", "2", "--json", str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    steps = json.loads(path.read_text())["steps"]
    # A layer: two norms, qkv, RoPE, attention and the reduction of its splits, o, gate_up, gate,
    # down. The embedding's rows come before, the last norm after; the head is dense. Prompts have
    # an attention of their own besides.
    assert steps["prefill, 40 tokens"]["launches"] == 2 * 10 + 2
    assert steps["decode, 4 rows"]["launches"] == 2 * 9 + 2
    assert all(0 < took["replayed_ms"] < took["ms"] < 1000 for took in steps.values())
    assert "prefill, 40 tokens" in done.stdout and "launches" in done.stdout
