"""Models that several folders of tests use."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

# Kernels of this process run in Triton's interpreter, which is chosen when triton is imported.
os.environ["TRITON_INTERPRET"] = "1"
# Read when torch is first imported: threads that wait sleep instead of spinning, or the tests of
# tiny models crawl on a machine whose cores are busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The default model; pulled once into the cache when it is not there."""
    from halfbyte.loaders.store import pull_model

    return pull_model("smollm2")


@pytest.fixture(scope="session")
def tiny_hf() -> Path:
    """A two-layer Llama as a folder: float16, vocabulary 600, context 512."""
    return FIXTURES / "fp16-llama-spm"


@pytest.fixture(scope="session")
def tiny_gguf() -> Path:
    """The same model as a GGUF file: Q4_0, embedding in Q8_0."""
    return FIXTURES / "gguf-q4_0-spm-llama" / "model.gguf"


@pytest.fixture
def in_child() -> Callable[[Callable[[], str]], str]:
    """What a function gives, or the error that it raises, in a forked child; "" if it hangs."""

    def run(work: Callable[[], str]) -> str:
        come, go = os.pipe()
        child = os.fork()
        if not child:
            try:
                text = work()
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"
            os.write(go, text.encode())
            os._exit(0)
        os.close(go)
        with os.fdopen(come, "rb") as reader:
            # A child that hangs must not hang the tests.
            ready, _, _ = select.select([reader], [], [], 60)
            if not ready:
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return reader.read().decode() if ready else ""

    return run
