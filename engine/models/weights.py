"""Weights of a checkpoint, packed for a backend as a network is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from halfbyte.errors import UnsupportedWeightError

from ...kernels.formats.canonical import QuantizedLinear, Weight, can_fuse
from ...kernels.formats.stored import StoredLinear
from ...loaders.base import Checkpoint, load_stored
from ..backends.base import (
    Activation,
    Backend,
    ExpertMixture,
    MixtureShape,
    PackedLinear,
    RecurrentOps,
)
from ..backends.packed_cache import PackedCache
from .projections import FusedLinear


class WeightSource:
    """Pulls weights by name, packs them, and tells the checkpoint when their file pages can go.

    Args:
        checkpoint: where the weights come from.
        backend: packs them.
        norm_offset: what is added to the stored weights of norms (Gemma).
        cache: packed weights of an earlier run, which are not pulled again; None packs all.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        backend: Backend[Any],
        norm_offset: float = 0.0,
        cache: PackedCache | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._backend = backend
        self._norm_offset = norm_offset
        self._cache = cache
        self._taken: list[str] = []

    def norm(self, module: str) -> Tensor:
        """What an RMSNorm multiplies by, float32 [D]: the stored weight, or 1 plus it (Gemma)."""
        return self.vector(f"{module}.weight") + self._norm_offset

    def recurrent(self) -> RecurrentOps:
        """The backend's ops for blocks with states, which a decoder has asked for before."""
        assert self._backend.recurrent is not None
        return self._backend.recurrent

    def embedding(self, module: str) -> PackedLinear:
        """A table [V, D]."""

        def pack() -> PackedLinear:
            return self._backend.packer.pack_embedding(self._take(f"{module}.weight"))

        return self._kept(module, lambda: [pack()])[0]

    def packed(self, module: str, has_bias: bool = False) -> PackedLinear:
        """One projection. Raises UnsupportedWeightError."""

        def pack() -> PackedLinear:
            weight = self._take(f"{module}.weight")
            self._check(weight, module)
            return self._backend.packer.pack(weight, self._bias(module, has_bias))

        return self._kept(module, lambda: [pack()])[0]

    def fused(
        self, modules: list[str], has_bias: bool, gate: Activation | None = None
    ) -> FusedLinear[Any]:
        """Projections of one input as one matrix when the formats agree, else behind one call.

        ``gate`` is the activation of an MLP's gate and up projections. Raises
        UnsupportedWeightError.
        """
        activation = gate or "silu"
        if self._cache is not None:
            # The backends with a cache have no product that ends in an activation.
            parts = self._kept("+".join(modules), lambda: self._stacked(modules, has_bias).parts)
            return FusedLinear(parts, activation=activation)
        return self._stacked(modules, has_bias, gate)

    def _stacked(
        self, modules: list[str], has_bias: bool, gate: Activation | None = None
    ) -> FusedLinear[Any]:
        """:meth:`fused`, from the checkpoint."""
        activation, packer = gate or "silu", self._backend.packer
        weights = [self._take(f"{m}.weight") for m in modules]
        if not can_fuse(weights) or _stored_apart(weights):
            biases = [self._bias(m, has_bias) for m in modules]
            for module, weight in zip(modules, weights, strict=True):
                self._check(weight, module)
            parts = [packer.pack(w, b) for w, b in zip(weights, biases, strict=True)]
            return FusedLinear(parts, activation=activation)
        whole = _stack(weights)
        bias = torch.cat([self.vector(f"{m}.bias") for m in modules]) if has_bias else None
        self._check(whole, " + ".join(modules))
        fused = packer.pack_gated(whole, bias, gate) if gate else None
        if fused is not None:
            return FusedLinear([fused], activated=True)
        return FusedLinear([packer.pack(whole, bias)], activation=activation)

    def mixture(
        self, experts: Sequence[tuple[FusedLinear[Any], PackedLinear]], shape: MixtureShape
    ) -> ExpertMixture | None:
        """Packed experts of a layer, gate-up and down projections, as one; None if they cannot."""
        pairs = [(gate_up.parts[0], down) for gate_up, down in experts]
        if any(len(gate_up.parts) > 1 for gate_up, _ in experts):
            return None
        return self._backend.packer.pack_mixture(pairs, shape)

    def release(self) -> None:
        """Nothing that was taken is needed any more."""
        self._checkpoint.release(self._taken)
        self._taken.clear()

    def _kept(self, name: str, make: Callable[[], list[Any]]) -> list[Any]:
        """Packed weights of a name, of an earlier run where they were kept."""
        return make() if self._cache is None else self._cache.parts(name, make)

    def _take(self, name: str) -> Weight:
        self._taken.append(name)
        return load_stored(self._checkpoint, name)

    def vector(self, name: str) -> Tensor:
        """A small tensor [...] as it is stored, in float32, on the backend's device."""
        weight = self._take(name)
        assert not isinstance(weight, QuantizedLinear)
        return weight.to(self._backend.device, torch.float32)

    def _bias(self, module: str, expected: bool) -> Tensor | None:
        return self.vector(f"{module}.bias") if expected else None

    def _check(self, weight: Weight, module: str) -> None:
        reason = self._backend.packer.supports(weight)
        if reason is not None:
            raise UnsupportedWeightError(
                f"{module}: {reason}",
                hint=f"backend {self._backend.name!r} cannot run it; try 'reference'",
            )


def _stored_apart(weights: list[Weight]) -> bool:
    """Whether their files' encodings differ: stacked, none of them could be packed as stored."""
    return len({w.encoding if isinstance(w, StoredLinear) else "" for w in weights}) > 1


def _stack(weights: list[Weight]) -> Weight:
    quantized = [w for w in weights if isinstance(w, QuantizedLinear)]
    if quantized:
        return StoredLinear.stack(quantized)
    return torch.cat([w for w in weights if isinstance(w, Tensor)])
