"""Mutated GGUF files: whatever is wrong with them, only our own errors come out."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loader_gguf_files import tiny_gguf, write

from halfbyte.errors import HalfbyteError
from halfbyte.loaders import open_checkpoint

SOUND = tiny_gguf()
DATA_START = SOUND.index(b"output_norm.weight") + 64  # most edits should hit the headers


def use_everything(path: Path) -> None:
    """Open, build the tokenizer source, convert every tensor: as an engine would."""
    start = time.process_time()
    try:
        checkpoint = open_checkpoint(path)
        try:
            checkpoint.tokenizer()
            for info in checkpoint.tensors():
                checkpoint.load(info.name)
        finally:
            checkpoint.close()
    except HalfbyteError as error:
        assert str(error)
    assert time.process_time() - start < 1


edits = st.lists(
    st.tuples(
        st.one_of(st.integers(0, DATA_START), st.integers(0, len(SOUND) - 1)),
        st.one_of(
            st.binary(min_size=1, max_size=9),
            st.sampled_from([b"\0", b"\xff", b"\xff" * 8, b"\0" * 8, b"\0\0\0\0\0\0\0\x80"]),
        ),
    ),
    min_size=1,
    max_size=4,
)
cuts = st.one_of(st.none(), st.integers(0, len(SOUND)))
inserts = st.one_of(st.none(), st.tuples(st.integers(0, len(SOUND)), st.binary(max_size=40)))


def mutate(changes, cut, insert) -> bytes:
    data = bytearray(SOUND)
    for at, new in changes:
        data[at : at + len(new)] = new
    if insert is not None:
        data[insert[0] : insert[0]] = insert[1]
    return bytes(data[:cut])


def check(changes, cut, insert) -> None:
    with tempfile.TemporaryDirectory() as folder:
        use_everything(write(Path(folder) / "m.gguf", mutate(changes, cut, insert)))


@given(edits, cuts, inserts)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_mutated_files_raise_only_our_errors(changes, cut, insert):
    check(changes, cut, insert)


@pytest.mark.slow
@given(edits, cuts, inserts)
@settings(max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_mutated_files_at_length(changes, cut, insert):
    check(changes, cut, insert)


def test_every_single_byte_of_the_headers(tmp_path):
    """Each header byte once with all bits flipped: counts, lengths, types, offsets, text."""
    path = tmp_path / "m.gguf"
    for at in range(DATA_START):
        data = bytearray(SOUND)
        data[at] ^= 0xFF
        use_everything(write(path, bytes(data)))


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_noise_behind_the_magic(noise):
    with tempfile.TemporaryDirectory() as folder:
        use_everything(write(Path(folder) / "m.gguf", b"GGUF\x03\0\0\0" + noise))
