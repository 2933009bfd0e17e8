"""Warm-up: after it no request, of any length or batch, may meet a kernel that is not compiled."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from halfbyte import Engine, SamplingParams
from halfbyte.engine.run.executors import row_counts, token_counts
from halfbyte.engine.run.warmup import make_ready, warm_up
from halfbyte.kernels.codegen.environment import compiling_environment

PROBE = Path(__file__).parent / "compile_probe.py"


def keys_of(model: Path, mode: str, context: int) -> tuple[int, list[str]]:
    """How many kernels are compiled before the engine is ready, and which ones after.

    On a GPU that is made up as far as Triton can tell; see the probe.
    """
    seed = random.randrange(1 << 31)
    print("seed", seed)
    environment = compiling_environment()
    command = [sys.executable, "-W", "ignore", str(PROBE), str(model), mode, str(seed)]
    command.append(str(context))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    keys = json.loads(done.stdout.splitlines()[-1])
    return keys["before"], keys["after"]


@pytest.mark.parametrize("mode", ["plain", pytest.param("exact", marks=pytest.mark.slow)])
def test_nothing_is_compiled_after_ready(mode: str, tiny_gguf: Path) -> None:
    before, after = keys_of(tiny_gguf, mode, 320)
    assert before > 10
    assert after == []


# Mixed formats of q, k, v: outputs that are strips of a matrix; 8-bit inputs beside 16-bit ones.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("autoround-4b-g64-asym-mixed-mistral", marks=pytest.mark.slow),
        "ct-mixed-w4a16-w8a8-phi3",
    ],
)
def test_nothing_is_compiled_after_ready_of_mixed_kernels(name: str, tiny_hf: Path) -> None:
    before, after = keys_of(tiny_hf.parent / name, "plain", 256)
    assert before > 25
    assert after == []


def test_row_counts_reach_every_bucket_and_the_end() -> None:
    assert row_counts(1) == [1]
    assert row_counts(9) == [1, 2, 3, 4, 6, 8, 9]
    assert row_counts(64)[-4:] == [24, 32, 48, 64]
    assert token_counts(0) == [0]
    assert token_counts(40) == [16, 20, 24, 28, 32, 40]
    assert token_counts(100)[-4:] == [64, 80, 96, 100]


def test_warm_up_leaves_no_trace_in_the_answers(tiny_gguf: Path) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    fresh, warm = (Engine(tiny_gguf, max_context=64, max_batch=3) for _ in range(2))
    assert warm_up(warm._loop.runner, 3, 40, 64, exact=True) > 10
    prompts = [[5, 6, 7], [8] * 20]
    want = [done.token_ids for done in fresh.generate(prompts, greedy)]
    assert [done.token_ids for done in warm.generate(prompts, greedy)] == want
    assert warm.stats().steps == fresh.stats().steps


def test_backends_that_compile_nothing_are_not_warmed_up(tiny_gguf: Path) -> None:
    engine = Engine(tiny_gguf, max_context=64)
    assert make_ready(engine._loop.runner, engine.config, engine.max_context) is None
