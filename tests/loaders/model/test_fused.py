"""Stacked projections (Phi-3): together, apart, and in any mix within one folder."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from loader_gguf_files import refuses
from loader_hf_files import TINY_CONFIG, TINY_SHAPES
from safetensors.torch import save_file

from halfbyte.errors import CheckpointError
from halfbyte.loaders.hf.folder import HFFolderCheckpoint

LAYER = "model.layers.0."
QKV = [f"{LAYER}self_attn.{p}_proj.weight" for p in "qkv"]
GATE_UP = [f"{LAYER}mlp.{p}_proj.weight" for p in ("gate", "up")]
STACKS = {f"{LAYER}self_attn.qkv_proj.weight": QKV, f"{LAYER}mlp.gate_up_proj.weight": GATE_UP}


def weights() -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape) for name, shape in TINY_SHAPES.items()}


def folder_of(path: Path, tensors: dict[str, torch.Tensor], family: str = "phi3") -> Path:
    path.mkdir()
    config = TINY_CONFIG | {"model_type": family, "architectures": None}
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / FILE)
    return path


FILE = "model.safetensors"


def stack(tensors: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    out = dict(tensors)
    for name in names:
        out[name] = torch.cat([out.pop(part) for part in STACKS[name]])
    return out


@pytest.mark.parametrize("family", ["phi3", "llama"])
@pytest.mark.parametrize("stacked", [(), *itertools.combinations(STACKS, 1), tuple(STACKS)])
def test_every_mix_gives_the_same_weights(tmp_path, family, stacked):
    plain = weights()
    checkpoint = HFFolderCheckpoint(folder_of(tmp_path / "m", stack(plain, *stacked), family))
    assert {info.name for info in checkpoint.tensors()} == set(plain)
    for _ in range(2):  # a released stack can be read again
        for name, want in plain.items():
            got = checkpoint.load(name)
            assert isinstance(got, torch.Tensor) and torch.equal(got, want), name
        checkpoint.release(plain)
    checkpoint.close()


def test_a_part_that_is_stored_twice_is_refused(tmp_path):
    plain = weights()
    both = stack(plain, *STACKS) | {QKV[1]: plain[QKV[1]]}
    folder = folder_of(tmp_path / "m", both)
    refuses(
        lambda: HFFolderCheckpoint(folder),
        CheckpointError,
        r"k_proj\.weight is stored alone and in model\.layers\.0\.self_attn\.qkv_proj\.weight",
    )


def test_a_stack_of_another_height_is_refused(tmp_path):
    bad = stack(weights(), *STACKS)
    name = f"{LAYER}mlp.gate_up_proj.weight"
    bad[name] = bad[name][:-1]
    folder = folder_of(tmp_path / "m", bad)
    refuses(
        lambda: HFFolderCheckpoint(folder),
        CheckpointError,
        r"gate_up_proj\.weight is \[23, 8\]; expected \[24, 8\]",
    )


def test_half_a_stack_is_missing(tmp_path):
    plain = weights()
    del plain[QKV[2]]
    folder = folder_of(tmp_path / "m", plain)
    refuses(lambda: HFFolderCheckpoint(folder), CheckpointError, r"v_proj\.weight is missing")
