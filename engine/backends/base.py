"""The ``Ops`` protocol: what a backend must be able to compute, and its packed weights.

A backend packs each canonical weight once and then runs steps. ``cpu_native`` and
``reference`` implement it today; ``cuda_triton`` and ``interpreter`` take the same seat.

Shape letters: T tokens, D hidden size, K input features, N output features, H query heads,
J key/value heads, E head dimension, I MLP width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from ...kernels.formats.canonical import Weight
from ..run.kv_cache import LayerKV
from ..run.sampling import RowSampling
from ..run.step import StepInputs

Activation = Literal["silu", "gelu_tanh"]
"""What an MLP applies to its gate; ``gelu_tanh`` is the tanh form that Gemma uses."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """One layer's attention: head counts, sizes and the window.

    Attributes:
        heads: query heads H.
        kv_heads: key/value heads J.
        head_dim: E.
        scale: factor on the scores, ``head_dim ** -0.5`` as a rule.
        window: sliding window in tokens, 0 = full.
        q_norm: per-head RMSNorm weight [E] on queries before RoPE, or None.
        k_norm: the same for keys.
        eps: epsilon of those norms.
        softcap: scores become ``cap * tanh(score / cap)`` before the mask (Gemma 2); 0 = none.
        local_rope: rotate by the step's ``rope_local`` (Gemma 3's sliding layers).
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    eps: float = 0.0
    softcap: float = 0.0
    local_rope: bool = False


class PackedLinear(Protocol):
    """A weight in one backend's own layout, with its bias.

    Attributes:
        shape: (N, K) as in the checkpoint, before any padding.
        nbytes: bytes that one pass over the weight reads.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        ...


class Program(Protocol):
    """A recorded step that can be replayed on the same buffers (a CUDA graph, or its like)."""

    def run(self) -> None:
        """Compute the step from what the input buffers hold now."""
        ...


P = TypeVar("P", bound=PackedLinear)


class Ops(Protocol[P]):
    """The arithmetic of a decoder step; see :mod:`halfbyte.kernels.reference` for meanings.

    ``P`` is the backend's own packed weight; only the backend looks inside.

    Attributes:
        name: backend name for tables and messages.
        dtype: activation type.
        kv_dtype: KV cache type.
        device: where weights, activations and the KV cache lie.
        records: whether steps can be recorded.
        eager: whether ops compute at once when nothing is being recorded.
        compiles: kernels are compiled at their first launch, so an engine warms up.
        alone: compute one token at a time, which makes results independent of the batch on a
            backend whose kernels are not.
    """

    name: str
    dtype: torch.dtype
    kv_dtype: torch.dtype
    device: torch.device
    records: bool
    eager: bool
    compiles: bool
    alone: bool

    def supports(self, weight: Weight) -> str | None:
        """None when the weight can be packed, else the reason why not."""
        ...

    def supports_heads(self, head_dim: int) -> str | None:
        """None when heads of this size can be attended with, else the reason why not."""
        ...

    def pack(self, weight: Weight, bias: Tensor | None = None) -> P:
        """Pack a linear weight [N, K] once. Raises UnsupportedWeightError."""
        ...

    def pack_embedding(self, weight: Weight) -> P:
        """Pack an embedding table [V, D] for :meth:`embed`; it may serve as LM head, too."""
        ...

    def pack_gated(
        self, weight: Weight, bias: Tensor | None = None, activation: Activation = "silu"
    ) -> P | None:
        """Pack gate over up [2 I, K] so that :meth:`linear` gives ``act(gate) * up`` [T, I].

        None when the backend has no such kernel for the format.
        """
        ...

    def prepare(self, step: StepInputs) -> StepInputs:
        """The step as this backend takes it: on its device, with what all layers share."""
        ...

    def graph_key(self, step: StepInputs) -> tuple[int, ...]:
        """What two prepared decode steps must have in common to share a recording."""
        ...

    def embed(self, ids_T: Tensor, table: P, scale: float = 1.0) -> Tensor:
        """``scale`` times rows of a packed [V, D] matrix -> residual [T, D]."""
        ...

    def rms_norm(
        self, x_TD: Tensor, weight_D: Tensor, eps: float, rows: Tensor | None = None
    ) -> Tensor:
        """RMSNorm of all rows -> [T, D], or of the rows that int64 ``rows`` [S] names."""
        ...

    def linear(self, x_TK: Tensor, weight: P, out: Tensor | None = None) -> Tensor:
        """``x @ W.T + bias`` -> [T, N], into ``out`` (rows may be strided) when given."""
        ...

    def linear_add(self, x_TK: Tensor, weight: P, residual_TN: Tensor) -> None:
        """``residual += x @ W.T + bias`` in place, for x [T, K] and residual [T, N]."""
        ...

    def rope_write_kv(
        self, qkv_TC: Tensor, shape: AttentionShape, kv: LayerKV, step: StepInputs
    ) -> Tensor:
        """Norm and rotate q and k of [T, (H + 2 J) E], store k and v -> q [T, H, E]."""
        ...

    def attention(
        self, q_THE: Tensor, shape: AttentionShape, kv: LayerKV, step: StepInputs
    ) -> Tensor:
        """Causal attention over the cache -> [T, H * E]."""
        ...

    def add(self, x_TD: Tensor, residual_TD: Tensor) -> None:
        """``residual += x`` in place, for x [T, D]."""
        ...

    def gated_mul(self, gate_up_TI2: Tensor, activation: Activation = "silu") -> Tensor:
        """``act(gate) * up`` -> [T, I]."""
        ...

    def argmax(self, logits_SV: Tensor) -> Tensor:
        """Index of each row's largest logit, int64 [S]; never recorded, computed at once.

        -1 for a row with a NaN, or whose largest logit is infinite.
        """
        ...

    def sample(self, logits_SV: Tensor, rows: Sequence[RowSampling]) -> Tensor | None:
        """One token for each row of logits, int64 [S], computed at once; -1 as :meth:`argmax`.

        None when the backend leaves the draw to the host.
        """
        ...

    def begin_record(self) -> None:
        """From here on ops are noted down, not computed; they still return their buffers."""
        ...

    def end_record(self) -> Program:
        """Stop noting down; the program keeps the buffers that its ops use alive."""
        ...
