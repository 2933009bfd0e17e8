"""Warm-up: after it no request, of any length or batch, may meet a kernel that is not compiled."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from halfbyte import Engine, SamplingParams
from halfbyte.engine.warmup import make_ready, row_counts, warm_up

PROBE = Path(__file__).parent / "compile_probe.py"


@pytest.mark.parametrize("mode", ["plain", "exact"])
def test_nothing_is_compiled_after_ready(mode: str, tiny_gguf: Path) -> None:
    """On a GPU that is made up as far as Triton can tell; see the probe."""
    seed = random.randrange(1 << 31)
    print("seed", seed)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", str(PROBE), str(tiny_gguf), mode, str(seed), "320"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    keys = json.loads(done.stdout.splitlines()[-1])
    assert keys["before"] > 10
    assert keys["after"] == []


def test_row_counts_reach_every_bucket_and_the_end() -> None:
    assert row_counts(1) == [1]
    assert row_counts(9) == [1, 2, 3, 4, 6, 8, 9]
    assert row_counts(64)[-4:] == [24, 32, 48, 64]


def test_warm_up_leaves_no_trace_in_the_answers(tiny_gguf: Path) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    fresh, warm = (Engine(tiny_gguf, max_context=64, max_batch=3) for _ in range(2))
    assert warm_up(warm._runner, 3, 40, 64) > 10
    prompts = [[5, 6, 7], [8] * 20]
    want = [done.token_ids for done in fresh.generate(prompts, greedy)]
    assert [done.token_ids for done in warm.generate(prompts, greedy)] == want
    assert warm.stats().steps == fresh.stats().steps


def test_backends_that_compile_nothing_are_not_warmed_up(tiny_gguf: Path) -> None:
    engine = Engine(tiny_gguf, max_context=64)
    assert make_ready(engine._runner, engine.config, engine.max_context) is None
