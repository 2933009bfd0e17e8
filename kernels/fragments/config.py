"""Tile and split of the fragment kernels (W8A16 and codebooks) as pure functions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from ..device.choice import crossover, split_count
from ..device.workspace import COUNTERS, PARTIAL_BYTES
from ..kind import Chosen, Conditions, MatrixSpec, round_up
from .layout import FRAGMENT_ROW_ALIGN

EXACT_TOKENS = 16
_EXACT_SPLITS = 8
TOKENS = (8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class FragmentConfig:
    """Parameters of one launch.

    Attributes:
        bm: tokens in a tile.
        bn: stored rows of the weight in a tile.
        warps: warps of a program.
        stages: pipeline stages.
        splits: programs that share the K of one tile.
        dense: dequantize and multiply instead; the other fields say nothing then.
    """

    bm: int
    bn: int
    warps: int
    stages: int
    splits: int = 1
    dense: bool = False


def tile(arch: int, bm: int, planes: int) -> FragmentConfig:
    """The tile for up to ``bm`` (8 to 64) tokens; ``planes`` as in Fragments."""
    if arch == 0:
        # Matrix instructions elsewhere than on NVIDIA have no side of 8, and little memory.
        return FragmentConfig(max(bm, 16), 128, 4 if bm < 64 else 8, 2)
    if bm <= 16:
        # Table lookups need many registers: 16 tokens then take 4 warps.
        return FragmentConfig(bm, 128, 2 if planes == 2 or bm == 8 else 4, 4)
    if bm == 32:
        return FragmentConfig(bm, 128, 4, 3)
    return FragmentConfig(bm, 128, 8, 3)


def launch_options(config: FragmentConfig, arch: int, planes: int, group: int) -> dict[str, Any]:
    """Launch options of a fused product."""
    options: dict[str, Any] = {"num_warps": config.warps, "num_stages": config.stages}
    small = config.bm == 16
    if small and ((arch and planes == 2 and group == 32) or (arch == 100 and planes == 4)):
        # The assembler aims at 128 or 96 registers here and spills; it needs up to 156.
        options["maxnreg"] = 168
    elif small and arch and planes == 2 and group == 128:
        options["maxnreg"] = 224  # with offsets
    return options


def may_be_dense(scale: str, fp16: bool) -> bool:
    """Whether the type of the inputs holds weights under scales of a type: fp16 has no e8m0."""
    return not (fp16 and scale == "e8m0")


def most_tokens(narrow: bool) -> int:
    """Tokens of the largest tile; ``narrow`` products leave no registers for 64.

    Those are products with sums of x for offsets, and tables in groups of 16.
    """
    return 32 if narrow else 64


def choose(
    arch: int,
    m: int,
    planes: int,
    stored_rows: int,
    slices: int,
    multiprocessors: int,
    *,
    exact: bool,
    narrow: bool,
    dense: bool,
    partials: int,
    counters: int,
) -> FragmentConfig:
    """The launch for M tokens; with ``exact`` nothing depends on M.

    ``narrow``: see :func:`most_tokens`. ``dense``: the weight may be dequantized to the type of
    its inputs.
    ``partials`` (elements) and ``counters`` are what the workspace holds.
    """
    if dense and not exact and m > crossover(arch):
        return FragmentConfig(0, 0, 0, 0, dense=True)
    most = most_tokens(narrow)
    bm = EXACT_TOKENS if exact else next((b for b in TOKENS if b >= min(m, most)), most)
    config = tile(arch, bm, planes)
    tiles_n = stored_rows // config.bn
    tiles = tiles_n if exact else tiles_n * -(-m // config.bm)
    cap = partials // (tiles * config.bm * config.bn) if tiles <= counters else 1
    programs = multiprocessors * max(1, 8 // config.warps)
    splits = split_count(tiles, slices, programs, min(max(cap, 1), _EXACT_SPLITS if exact else 16))
    return replace(config, splits=splits)


def chosen(
    spec: MatrixSpec,
    m: int,
    where: Conditions,
    *,
    planes: int,
    narrow: bool,
    detail: str,
    scale: str = "",
) -> Chosen:
    """What :func:`choose` says of a weight whose workspace is the usual one, and why."""
    device = where.device
    config = choose(
        *(
            device.arch,
            m,
            planes,
            round_up(spec.n, FRAGMENT_ROW_ALIGN),
            -(-spec.k // (32 * planes)),
        ),
        device.sms,
        exact=where.exact,
        narrow=narrow,
        dense=may_be_dense(scale, where.fp16),
        partials=PARTIAL_BYTES // 4,
        counters=COUNTERS,
    )
    limit = crossover(device.arch)
    if config.dense:
        why = f"{m} rows: above {limit} on sm_{device.arch} a dense product is faster"
        return Chosen("dequantize", {}, "formula", detail, {"fused": why})
    if not may_be_dense(scale, where.fp16):
        why = "exponents of 8 bits: float16 does not hold such weights, sums in float32 do"
    elif where.exact:
        why = "exact: one tile, split and order of sums for every number of rows"
    else:
        why = f"{m} rows: up to {limit} on sm_{device.arch} reading the codes wins"
    values = {key: value for key, value in asdict(config).items() if key != "dense"}
    source = "exact" if where.exact else "formula"
    return Chosen("fused", values, source, detail, {"dequantize": why})
