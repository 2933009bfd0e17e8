"""What packed weights take in memory: what their kinds say, and hardly more than files have."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from cpu_support import BYTES, Kind, all_kinds, make_case, needs_compiler
from pack_support import BLOCKS, DTYPES, TYPES, blocks, packed, stored
from seeds import fresh_seed

from halfbyte.kernels.cpu.kinds import TILE_KINDS
from halfbyte.kernels.cpu.pack import TiledLinear
from halfbyte.kernels.formats.canonical import Weight
from halfbyte.kernels.formats.stored import CODES_ALONE, StoredLinear
from halfbyte.kernels.kind import MatrixSpec, carrier

pytestmark = needs_compiler


def kind_of(weight: Weight) -> str:
    """The kind that the table of ``kinds.py`` names."""
    if isinstance(weight, torch.Tensor):
        return "dense"
    if isinstance(weight, StoredLinear) and weight.encoding not in CODES_ALONE:
        return "blocks"
    form, k = weight.format, weight.shape[1]
    if len(form.table) > 16 or (0 < form.group_size < k and form.group_size % 16):
        return "dense"
    return {"e4m3": "float8", "table": "table"}.get(form.zero, "integers")


def told(weight: Weight, made: TiledLinear) -> None:
    """What the kind says without packing is what packing did, for whole tiles and chunks."""
    numbers = weight.dtype if isinstance(weight, torch.Tensor) else weight.scales.dtype
    spec = replace(MatrixSpec.of(weight), dtype=DTYPES[numbers])
    found = carrier(TILE_KINDS, spec, 0)
    assert found.kind.name == kind_of(weight)
    assert found.kind.packed_bytes(spec) == made.nbytes
    assert found.kind.how(spec) and all(found.rejected.values())


@pytest.mark.parametrize("kind", all_kinds(), ids=str)
def test_kinds_tell_what_is_packed(kind: Kind) -> None:
    rng = random.Random(fresh_seed())
    group = kind.group if kind.group > 0 else rng.choice([8, 12, 40])
    for n, k in ((32, 3 * group), (96, 8 * group), (32, group)):
        weight = make_case(kind, n, k, rng.getrandbits(30)).weight
        told(weight, packed(weight))


@pytest.mark.parametrize("name", BLOCKS)
def test_stored_blocks_take_the_bytes_that_the_file_has(name: str) -> None:
    rng = random.Random(fresh_seed())
    raw = blocks(name, 64, 768, rng)
    weight, _ = stored(name, [raw], 768)
    made = packed(weight)
    assert made.nbytes == raw.numel() == 64 * 768 // TYPES[name].elements * TYPES[name].nbytes
    told(weight, made)


HALF, BRAIN = torch.float16, torch.bfloat16
MX, NV = BYTES


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        # Bits of a weight in a checkpoint: codes, and a share of scales and zero points.
        (Kind(4, 128, "int", HALF), 4 + (16 + 4) / 128),  # GPTQ, AWQ
        (Kind(4, 32, "int", HALF), 4 + (16 + 4) / 32),
        (Kind(4, 16, "int", HALF), 4 + (16 + 4) / 16),
        (Kind(3, 128, "int", HALF), 3 + (16 + 3) / 128),
        (Kind(3, 32, "int", HALF), 3 + (16 + 3) / 32),
        (Kind(2, 64, "int", HALF), 2 + (16 + 2) / 64),
        (Kind(2, 32, "int", HALF), 2 + (16 + 2) / 32),
        (Kind(8, 128, "int", HALF), 8 + (16 + 8) / 128),
        (Kind(4, 128, "none", BRAIN), 4 + 16 / 128),  # compressed-tensors, symmetric
        (Kind(4, 64, "float", HALF), 4 + 2 * 16 / 64),  # MLX
        (Kind(6, 64, "float", BRAIN), 6 + 2 * 16 / 64),
        (Kind(5, 64, "float", HALF), 5 + 2 * 16 / 64),
        (Kind(2, 64, "float", HALF), 2 + 2 * 16 / 64),
        (Kind(4, 64, "table"), 4 + 32 / 64),  # bitsandbytes
        # With double quantization: a scale in 8 bits, and a factor for 256 of them. Of such a small
        # matrix the table of scales is a part, in the file, too.
        (Kind(4, 64, "table", compact=True), 4 + (8 + 32 / 256) / 64 + 32 * 256 / (64 * 1536)),
        (Kind(4, 32, "table", MX, compact=True), 4 + 8 / 32),  # MXFP4
        (Kind(4, 16, "table", NV, compact=True), 4 + 8 / 16 + 32 / 1536),  # NVFP4
        (Kind(4, 64, "float", HALF, compact=True), 4 + 2 * 16 / 64),  # HQQ
        (Kind(8, 32, "float", BRAIN, compact=True), 8 + 2 * 16 / 32),
        (Kind(8, 32, "int", BRAIN), 8 + (16 + 8) / 32),  # torchao
        (Kind(8, -1), 8 + 32 / 1536),  # int8 and float8 with a scale for each row
        (Kind(8, -1, "e4m3"), 8 + 32 / 1536),
        (Kind(8, 128, "e4m3", BRAIN), 8 + 16 / 128),
        (Kind(dtype=torch.float32), 32),
        (Kind(dtype=HALF), 16),
        (Kind(dtype=BRAIN), 16),
    ],
    ids=str,
)
def test_memory_holds_hardly_more_than_the_file(kind: Kind, bits: float) -> None:
    """Zero points are kept in 4 bits or as bytes; nothing else is wider than in a file."""
    made = packed(make_case(kind, 64, 1536, 1).weight)
    assert made.nbytes * 8 / (64 * 1536) <= 1.03 * bits
