"""Checkpoints of other tools on the Triton kernels, compiled, and their PTX interpreted.

What test_checkpoints_interpreter.py asks of Triton's interpreter, of the machine language.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from left_out import FENCED
from test_checkpoints_interpreter import ONE_OF_EACH

from halfbyte.bench.ptx.run import EMULATED_ARCHS
from halfbyte.kernels.codegen.environment import compiling_environment

PROBE = Path(__file__).with_name("ptx_checkpoint.py")


@pytest.mark.ptx
@pytest.mark.timeout(600)
@pytest.mark.parametrize("arch", EMULATED_ARCHS)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_one_of_each_kind_in_ptx(name: str, arch: str) -> None:
    environment = compiling_environment()
    command = [sys.executable, str(PROBE), name, arch, str(random.randrange(1 << 30))]
    done = subprocess.run(
        command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith(" launches\n")
    if not FENCED and arch == "sm_90":
        pytest.xfail("right with what this Triton leaves out between copies and products put in")
