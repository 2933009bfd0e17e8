"""Importance matrices in both of llama.cpp's formats."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from halfbyte.errors import CheckpointError, QuantizeError
from halfbyte.loaders import open_checkpoint
from halfbyte.quantize.write.imatrix import (
    Imatrix,
    ImatrixEntry,
    make_imatrix,
    read_imatrix,
    write_imatrix,
)

MODEL = Path(__file__).parents[2] / "fixtures" / "fp16-llama-spm"
NAME = "model.layers.1.mlp.down_proj.weight"


def old_file(path: Path, name: bytes, calls: int, values: list[float]) -> None:
    head = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", calls, len(values))
    body = struct.pack(f"<{len(values)}f", *values)
    path.write_bytes(head + body + struct.pack("<ii", calls, 4) + b"text")


def test_what_is_written_is_read(tmp_path: Path):
    model, mean = open_checkpoint(MODEL), torch.rand(256)
    made = make_imatrix(model, {NAME: (mean, 1024)}, "calib.txt", 512)
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, made)
    found = read_imatrix(path)
    assert (found.datasets, found.chunks, found.length) == (("calib.txt",), 2, 512)
    assert set(found.entries) == {"blk.1.ffn_down.weight"}
    assert torch.equal(found.importance(model)[NAME], mean), "a count is a power of two"
    other = tmp_path / "again.gguf"
    write_imatrix(other, found)
    assert other.read_bytes() == path.read_bytes()


def test_old_files_are_read(tmp_path: Path):
    path = tmp_path / "imatrix.dat"
    old_file(path, b"blk.1.ffn_down.weight", 4, [8.0] * 256)
    found = read_imatrix(path)
    assert (found.datasets, found.chunks) == (("text",), 4)
    assert torch.equal(found.importance(open_checkpoint(MODEL))[NAME], torch.full((256,), 2.0))


def test_experts_have_rows_of_a_stack():
    class Model:
        config = open_checkpoint(MODEL).config

        def tensors(self):
            return [info(f"model.layers.0.mlp.experts.{i}.up_proj.weight") for i in range(3)]

    def info(name: str):
        from halfbyte.loaders.base import TensorInfo

        return TensorInfo(name, (8, 4), "F32", 128)

    model, names = Model(), [i.name for i in Model().tensors()]
    means = {names[0]: (torch.ones(4), 2), names[2]: (torch.full((4,), 3.0), 6)}
    made = make_imatrix(model, means, "t", 8)  # type: ignore[arg-type]
    entry = made.entries["blk.0.ffn_up_exps.weight"]
    assert entry.counts.tolist() == [2, 0, 6] and entry.sums[2].tolist() == [18.0] * 4
    found = made.importance(model)  # type: ignore[arg-type]
    assert set(found) == {names[0], names[2]}, "an expert without inputs has no importance"
    old = Imatrix(
        {"blk.0.ffn_up_exps.weight": ImatrixEntry(torch.ones(1, 12), torch.tensor([2.0]))}
    )
    assert set(old.importance(model)) == set(names)  # type: ignore[arg-type]


def test_damaged_files_are_refused(tmp_path: Path):
    path = tmp_path / "imatrix.dat"
    for data in (b"", b"\xff\xff\xff\x7f", struct.pack("<ii", 1, 1 << 30), b"GGUF"):
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            read_imatrix(path)
    for bad in (float("nan"), -1.0, float("inf")):
        old_file(path, b"x", 1, [1.0, bad])
        with pytest.raises(CheckpointError, match="importance of x holds negative numbers"):
            read_imatrix(path)
    with pytest.raises(CheckpointError, match=r"no tensor is called \.\.\.\.in_sum2"):
        read_imatrix(MODEL.parent / "gguf-q4_0-spm-llama" / "model.gguf")
    old_file(path, b"blk.1.ffn_down.weight", 1, [1.0] * 8)
    with pytest.raises(QuantizeError, match="expected 256 columns"):
        read_imatrix(path).importance(open_checkpoint(MODEL))
