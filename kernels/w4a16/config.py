"""Which W4A16 kernel runs, with which tile and split: pure functions, and the reasons why.

Figures behind the rules are instructions per weight of the compiled main loops (variants.py):
late scaling wins while its two multiply-adds per accumulator are fewer than the two
half-precision instructions per pair of weights, that is up to about 32 rows; on compute capability
9.0 up to 8, because products of warp groups leave more of the instructions to what surrounds them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from ..device.choice import crossover, split_count, tensor_memory, turn_splits
from ..device.dependent import early_launch
from ..kind import BUCKETS as BUCKETS
from ..tables.tuning import TunedProblem
from .layout import ROW_ALIGN, SLICE

KernelName = Literal["late", "direct", "dequantize"]

EXACT_MAX_SPLITS = 16


@dataclass(frozen=True, slots=True)
class Problem(TunedProblem):
    """One product as the rules see it.

    Attributes:
        kind: ``w4a16``.
        m: rows of the activations.
        rows: stored rows of the weight, a multiple of 128.
        k: features.
        group: as in ``PackedW4``: 32, 64, a multiple of 128 or 0.
        fp16: activations are fp16 (else bf16).
        arch: compute capability such as 90; 0 under the interpreter and elsewhere.
        sms: multiprocessors.
        exact: the bits of a row must not depend on ``m``.
        gated: rows are gate and up in blocks of 64, which one tile must hold.
    """

    kind: ClassVar[str] = "w4a16"
    group: int
    fp16: bool
    arch: int
    sms: int
    exact: bool = False
    gated: bool = False


@dataclass(frozen=True, slots=True)
class W4A16Config:
    """Parameters of one launch.

    Attributes:
        bm: rows of the activations in a tile; 0 for ``dequantize``.
        bn: stored rows of the weight in a tile.
        warps: warps of a program.
        stages: pipeline stages.
        splits: programs that share the K of one tile.
    """

    bm: int
    bn: int
    warps: int
    stages: int
    splits: int = 1


@dataclass(frozen=True, slots=True)
class TileChoice:
    """What runs and why.

    Attributes:
        kernel: ``late``, ``direct`` or ``dequantize`` (then a dense product).
        config: its launch parameters.
        source: where they came from: ``exact``, ``formula`` or the key of the override table.
        rejected: the other kernels, each with its reason.
    """

    kernel: KernelName
    config: W4A16Config
    source: str
    rejected: Mapping[str, str] = field(default_factory=dict)


def bucket(m: int) -> int:
    """The smallest bucket that holds ``m`` rows; the largest for more."""
    return next((b for b in BUCKETS if m <= b), BUCKETS[-1])


def table_key(p: Problem) -> str:
    """Key of a problem in an override table, e.g. ``sm90 m16 4096x14336 g128 fp16``."""
    dtype = "fp16" if p.fp16 else "bf16"
    return f"sm{p.arch} m{bucket(p.m)} {p.rows}x{p.k} g{p.group} {dtype}"


def late_tile(bm: int, bn: int = 128) -> W4A16Config:
    """Tile of the late-scaling kernel for ``bm`` = 8, 16 or 32 tokens; ``bn`` 64 only with 8."""
    if bm <= 16:
        return W4A16Config(bm, bn, 2, 4)
    return W4A16Config(bm, 128, 4, 3)


def launch_options(
    kernel: KernelName, config: W4A16Config, arch: int, group: int, early: bool
) -> dict[str, Any]:
    """Launch options of a fused product; ``early``: it may start before the kernel before ends."""
    options: dict[str, Any] = {"num_warps": config.warps, "num_stages": config.stages}
    options |= early_launch(early)
    spills = arch == 120 and config.bm == 32 and group == 64
    if arch and kernel == "late" and (group == 32 or spills):
        # Four entries a row and slice: fewer instructions with more registers than the assembler
        # aims at, and shared memory allows no more programs a multiprocessor anyway.
        options["maxnreg"] = 224
    elif arch == 80 and kernel == "late" and config.bn < ROW_ALIGN:
        options["maxnreg"] = 128  # the assembler's own aim spills in bf16
    return options


def joined_planes(config: W4A16Config, arch: int) -> int:
    """Planes of codes in one product of the in-register kernel: two in one of warp groups.

    All four would have fewer fences still, and more waits (docs/kernels.md).
    """
    return 2 if arch == 90 and config.warps >= 4 else 1


def late_tokens(group: int, exact: bool, arch: int) -> int:
    """Most tokens of one late-scaling tile; groups of 32 need four scale steps a slice."""
    if group == 32:
        return 8
    return 16 if exact or tensor_memory(arch) else 32


def late_rows(p: Problem) -> int:
    """Most rows for which group sums are scaled; above them weights are, in registers."""
    most = late_tokens(p.group, False, p.arch)
    # bf16 has no half-precision instructions that would scale a weight exactly.
    return min(most, 8) if p.arch == 90 and p.fp16 else most


def direct_tile(m: int, arch: int) -> W4A16Config:
    """Tile of the in-register kernel."""
    if arch == 90:
        # Two warp groups of 64 rows each.
        return W4A16Config(next((b for b in (16, 32, 64) if m <= b), 128), 128, 8, 3)
    if m <= 16:
        return W4A16Config(16, 128, 2, 4)
    if tensor_memory(arch):
        return W4A16Config(32, 128, 2, 3)
    if m <= 32:
        return W4A16Config(32, 128, 4, 3)
    if m <= 64:
        return W4A16Config(64, 128, 8, 3)
    return W4A16Config(128, 128, 8, 2 if arch in (0, 86, 89, 120) else 3)


def choose(
    p: Problem,
    *,
    partial_bytes: int,
    counters: int,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> TileChoice:
    """Kernel and launch parameters for a problem.

    ``partial_bytes`` and ``counters`` are the workspace's; ``overrides`` maps keys of
    :func:`table_key` to ``{"kernel", "bm", "bn", "warps", "stages", "splits"}``. Exact problems
    take neither tables nor anything else that depends on ``m``; a gated one no tile of a table that
    cannot hold gate and up, of which a key says nothing.
    """
    rejected: dict[str, str] = {}
    if p.exact:
        config = late_tile(late_tokens(p.group, True, p.arch))
        tiles = p.rows // config.bn
        cap = min(EXACT_MAX_SPLITS, _split_cap(config, tiles, partial_bytes, counters))
        splits = split_count(tiles, -(-p.k // SLICE), 4 * p.sms, cap)
        for name in ("direct", "dequantize"):
            rejected[name] = "exact: one tile, split and order of sums for every number of rows"
        return TileChoice("late", replace(config, splits=splits), "exact", rejected)

    found = None if overrides is None else overrides.get(table_key(p))
    if found is None or (p.gated and found["kernel"] == "late" and found["bn"] < ROW_ALIGN):
        return _formula(p, partial_bytes, counters)
    values = dict(found)
    kernel = values.pop("kernel")
    for name in ("late", "direct", "dequantize"):
        if name != kernel:
            rejected[name] = f"the override table names {kernel}"
    return TileChoice(kernel, W4A16Config(**values), table_key(p), rejected)


@functools.lru_cache(4096)
def _formula(p: Problem, partial_bytes: int, counters: int) -> TileChoice:
    """What is taken where no table says otherwise; asked before each launch."""
    rejected: dict[str, str] = {}
    limit = crossover(p.arch)
    if p.m > limit:
        why = f"{p.m} rows: above {limit} on sm_{p.arch} a dense product is faster"
        return TileChoice(
            "dequantize", W4A16Config(0, 64, 4, 1), "formula", {"late": why, "direct": why}
        )
    rejected["dequantize"] = f"{p.m} rows: up to {limit} on sm_{p.arch} reading 4 bits wins"
    most = late_rows(p)
    slices = -(-p.k // SLICE)
    if p.m <= most:
        kernel: KernelName = "late"
        config = late_tile(next(b for b in (8, 16, 32) if p.m <= b))
        if config.bm == 8 and not p.gated and p.rows // 128 * max(1, slices // 4) <= 2 * p.sms:
            # All splits there may be leave half of the multiprocessors' warps without work.
            config = late_tile(8, 64)
        rejected["direct"] = f"{p.m} rows: up to {most} scaling group sums takes fewer instructions"
    else:
        kernel = "direct"
        config = direct_tile(p.m, p.arch)
        rejected["late"] = f"{p.m} rows: above {most} (group {p.group}) scaling weights is cheaper"
    tiles = p.rows // config.bn * -(-p.m // config.bm)
    cap = _split_cap(config, tiles, partial_bytes, counters)
    splits = count_splits(config, tiles, slices, p.sms * resident(config, p.arch), cap)
    return TileChoice(kernel, replace(config, splits=splits), "formula", rejected)


def count_splits(config: W4A16Config, tiles: int, slices: int, programs: int, cap: int) -> int:
    """Splits of K for so many tiles, of which about ``programs`` run at once."""
    # Programs of two warps are small and many: the last turn of them costs little.
    count = split_count if config.warps <= 2 else turn_splits
    return count(tiles, slices, programs, cap)


def resident(config: W4A16Config, arch: int) -> int:
    """Programs that are meant to be on a multiprocessor at once."""
    if arch == 90 and config.warps == 8 and config.bm <= 64:
        return 2
    return max(1, 8 // config.warps)


def fits(rows: int, config: W4A16Config) -> bool:
    """Whether the rows of a packed weight are whole tiles of this configuration."""
    return config.bn in (64, ROW_ALIGN) and rows % config.bn == 0


def _split_cap(config: W4A16Config, tiles: int, partial_bytes: int, counters: int) -> int:
    """Most splits that the workspace can hold for this many output tiles."""
    if tiles > counters:
        return 1
    return max(1, partial_bytes // (tiles * config.bm * config.bn * 4))
