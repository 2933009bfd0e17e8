"""Bounds that every refusal keeps, and values that fuzzers put in place of sound ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch  # noqa: F401  imported by loading, which must not be charged with it
from computing_time import computes_within
from hypothesis import strategies as st

from halfbyte.errors import HalfbyteError
from halfbyte.loaders import open_checkpoint

SECONDS = 1.0
MIB = 100
ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"

PLAIN = ["llama", "mistral", "qwen2", "yarn", "su", "dynamic", "\ud800", "../x", "\0", "a" * 5000]
NUMBERS = [0, -1, 1, 2, 3, 8, 1 << 31, 1 << 63, 10**12, 1 << 200, 1e308, 5e-324, float("nan")]

anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-2, 40),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(PLAIN),
        st.sampled_from(NUMBERS),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@contextlib.contextmanager
def budget() -> Iterator[None]:
    """The block takes less than a second of computing and 100 MB of memory, errors or not."""
    _reset_peak()
    before = _status("VmHWM")
    with computes_within(SECONDS):
        yield
    assert _status("VmHWM") - before < MIB << 10


def only_our_errors(run: Callable[[], object]) -> HalfbyteError | None:
    """Run it within the budget; any error is one of ours, with a text fit to be printed."""
    with budget():
        try:
            run()
        except HalfbyteError as error:
            text = str(error)
            text.encode()
            assert 10 < len(text) < 4000 and "\x1b" not in text and "\0" not in text
            return error
    return None


def use_folder(folder: Path, *, load: bool = False) -> None:
    """Open a folder as an engine does: headers, tokenizer and, with ``load``, every weight."""
    checkpoint = open_checkpoint(folder)
    try:
        checkpoint.tokenizer()
        for info in checkpoint.tensors() if load else ():
            checkpoint.load(info.name)
    finally:
        checkpoint.close()


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in nested JSON."""
    found: list[tuple[Any, Any]] = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        found.append((tree, key))
        if isinstance(value, (dict, list)):
            found += places(value)
    return found


def _reset_peak() -> None:
    """Forget the peak so far (Linux); elsewhere the peak of the process stands, and is weaker."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    """A line of /proc/self/status in KiB; 0 where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1])
    return 0
