"""Run by test_checkpoints_ptx.py in a process of its own: an engine whose launches are interpreted.

Triton's launcher compiles every kernel for a target, and the interpreter of PTX runs what comes
out. Arguments: checkpoint, target, seed.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from test_checkpoints_interpreter import assert_one_prompt, path_of

from halfbyte import Engine
from halfbyte.engine import engine as engine_module
from halfbyte.engine.run.executors import EagerExecutor
from halfbyte.kernels.codegen.launcher import Emulation
from halfbyte.kernels.codegen.shipped import families, family_variants
from halfbyte.kernels.codegen.targets import target

_TESTS = Path(__file__).parents[1]
sys.path += [str(_TESTS), str(_TESTS / "engine" / "run")]
compile_probe: Any = importlib.import_module("compile_probe")
left_out: Any = importlib.import_module("left_out")


def main(name: str, arch: str, seed: int) -> None:
    engine_module.make_backend = lambda config: compile_probe.make_backend(
        False, torch.float16, EagerExecutor
    )
    on = target(arch)
    mended = [] if left_out.FENCED else [edit for _, edit, _ in left_out.LEFT_OUT]
    names = {v.fn.__name__ for family in families() for v in family_variants(family, on)}
    with Emulation(on, seed=seed, edits=dict.fromkeys(names, mended)) as emulation:
        engine = Engine(path_of(name), max_context=128, max_batch=1, prefix_cache=False)
        assert_one_prompt(engine, name)
    print(f"{len(emulation.launches)} launches")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
