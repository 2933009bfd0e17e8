"""Rotary position embedding: inverse frequencies of every scaling rule, and their table.

Rules (source in brackets): linear (position interpolation, Chen et al. 2023), dynamic
(NTK-aware scaling by sequence length), llama3 (Llama 3.1), yarn (Peng et al. 2023), longrope
(Ding et al. 2024), and stored per-frequency divisors (GGUF ``rope_freqs``).

Two rules depend on the length of the text. A prompt's tokens are rotated for the whole prompt's
length, a generated token for the length at its own position, so the result does not depend on
how a prompt was cut into chunks, and recomputing after a preemption gives the same keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...loaders.model.config import ModelConfig, RopeConfig


class Rotaries:
    """The rotary tables of a model: its own and, where some layers have another rule, that one's.

    Args:
        config: architecture.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._own = Rotary(config.rope, config.head_dim, config.max_position)
        local = config.rope_local
        self._local = local and Rotary(local, config.head_dim, config.max_position)

    def varies(self, context: int) -> bool:
        """Whether texts of up to ``context`` tokens may rotate one position differently."""
        return any(table.varies(context) for table in (self._own, self._local) if table)

    def lookup(self, positions_T: Tensor, lengths_T: Tensor) -> tuple[Tensor, Tensor | None]:
        """``StepInputs.rope`` and ``rope_local`` for positions [T]; the second may be None."""
        local = self._local and self._local.lookup(positions_T, lengths_T)
        return self._own.lookup(positions_T, lengths_T), local

    def query_factors(self, positions_T: Tensor) -> Tensor | None:
        """What rotated queries at positions [T] are multiplied by, float32 [T]; None: by 1."""
        rope = self._own.rope
        if not rope.query_scale:
            return None
        spans_T = (positions_T // rope.original_max_position).to(torch.float32)
        return 1.0 + rope.query_scale * spans_T.log1p()


class Rotary:
    """Cosines and sines by position, computed in float32 and grown on demand.

    Args:
        rope: scaling rule.
        head_dim: elements of a head, rotated whole unless ``rope.rotary_dim`` says less.
        max_position: context length in tokens of the model's config (dynamic, longrope).
    """

    def __init__(self, rope: RopeConfig, head_dim: int, max_position: int) -> None:
        self.rope = rope
        self.dim = rope.rotary_dim or head_dim
        self.limit = rope.original_max_position or max_position
        self.max_position = max_position
        self.scale = attention_factor(rope, max_position)
        self.by_length = rope.kind in ("dynamic", "longrope")
        self._table = torch.empty(0, self.dim)
        self._long = torch.empty(0, self.dim)

    def varies(self, context: int) -> bool:
        """Whether texts of up to ``context`` tokens may rotate one position differently."""
        return self.by_length and context > self.limit

    def lookup(self, positions_T: Tensor, lengths_T: Tensor) -> Tensor:
        """float32 [T, 2 F]: F cosines, then F sines, for each position.

        ``lengths`` (int [T]) is the text length that a length-dependent rule goes by.
        """
        index = positions_T.long()
        if not self.by_length or int(lengths_T.max()) <= self.limit:
            self._table = self._grown(self._table, index, self._short_inverse)
            return self._table[index]
        if self.rope.kind == "longrope":
            self._table = self._grown(self._table, index, self._short_inverse)
            self._long = self._grown(self._long, index, self._long_inverse)
            use_long = (lengths_T > self.limit).unsqueeze(-1)
            return torch.where(use_long, self._long[index], self._table[index])
        rows = [
            self._angles(index[i : i + 1], self._dynamic(int(length)))
            for i, length in enumerate(lengths_T)
        ]
        return torch.cat(rows)

    def _grown(self, table: Tensor, index: Tensor, inverse: Callable[[], Tensor]) -> Tensor:
        need = int(index.max()) + 1
        if need <= table.shape[0]:
            return table
        size = max(256, 1 << (need - 1).bit_length())
        return self._angles(torch.arange(size), inverse())

    def _angles(self, positions_T: Tensor, inverse_F: Tensor) -> Tensor:
        angles_TF = positions_T.to(torch.float32).unsqueeze(-1) * inverse_F
        return torch.cat((angles_TF.cos(), angles_TF.sin()), dim=-1) * self.scale

    def _short_inverse(self) -> Tensor:
        if self.rope.kind == "longrope":
            return self._factored(self.rope.short_factor)
        return inverse_frequencies(self.rope, self.dim, self.max_position)

    def _long_inverse(self) -> Tensor:
        return self._factored(self.rope.long_factor)

    def _factored(self, factors: tuple[float, ...]) -> Tensor:
        return _base_frequencies(self.rope.theta, self.dim) / torch.tensor(factors)

    def _dynamic(self, length: int) -> Tensor:
        if length <= self.limit:
            return _base_frequencies(self.rope.theta, self.dim)
        stretch = self.rope.factor * length / self.limit - (self.rope.factor - 1)
        theta = self.rope.theta * stretch ** (self.dim / (self.dim - 2))
        return _base_frequencies(theta, self.dim)


def inverse_frequencies(rope: RopeConfig, dim: int, max_position: int) -> Tensor:
    """float32 [dim / 2] angles per position, for the rules that do not depend on the length."""
    inverse = _base_frequencies(rope.theta, dim)
    if rope.kind == "none":
        return torch.zeros_like(inverse)
    if rope.freq_factors:
        return inverse / torch.tensor(rope.freq_factors)
    if rope.kind == "linear":
        return inverse / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, inverse)
    if rope.kind == "yarn":
        return _yarn(rope, inverse, dim, rope.original_max_position or max_position)
    return inverse


def attention_factor(rope: RopeConfig, max_position: int) -> float:
    """What cosines and sines are multiplied by (yarn and longrope), else 1."""
    if rope.kind not in ("yarn", "longrope"):
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.kind == "longrope":
        original = rope.original_max_position or max_position
        if rope.factor <= 1.0:
            return 1.0
        return math.sqrt(1 + math.log(rope.factor) / math.log(original))
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _base_frequencies(theta: float, dim: int) -> Tensor:
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).to(torch.float32) / dim
    return 1.0 / (theta**exponents)


def _llama3(rope: RopeConfig, inverse_F: Tensor) -> Tensor:
    """Long waves are slowed by ``factor``, short ones kept, the band between is blended."""
    original = rope.original_max_position
    wavelength = 2 * math.pi / inverse_F
    blend = (original / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    middle = (1 - blend) * inverse_F / rope.factor + blend * inverse_F
    out = torch.where(wavelength > original / rope.low_freq_factor, inverse_F / rope.factor, middle)
    return torch.where(wavelength < original / rope.high_freq_factor, inverse_F, out)


def _yarn(rope: RopeConfig, inverse_F: Tensor, dim: int, original: int) -> Tensor:
    """Interpolate slow dimensions, keep fast ones, ramp between the two bounds."""

    def bound(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = bound(rope.beta_fast), bound(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return inverse_F / rope.factor * ramp + inverse_F * (1 - ramp)
