"""What a backend is made of: ``Packer``, ``Ops``, ``Drawer`` and an ``Executor``.

The packer packs each canonical weight once; the ops are a step's arithmetic; an executor
(:mod:`..run.executors`) runs whole steps; the drawer draws tokens from their logits.

Shape letters: T tokens, D hidden size, K input features, N output features, H query heads,
J key/value heads, E head dimension, I MLP width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ...kernels.formats.canonical import Weight
from ...loaders.model.config import Activation, DeltaHeads
from ..run.executors import ExecutorFactory
from ..run.kv_cache import LayerKV
from ..run.sampling import RowSampling
from ..run.step import StepInputs


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """One layer's attention: head counts, sizes and the window.

    Attributes:
        heads: query heads H.
        kv_heads: key/value heads J.
        head_dim: E.
        scale: factor on the scores, ``head_dim ** -0.5`` as a rule.
        window: sliding window in tokens, 0 = full.
        q_norm: RMSNorm weight on queries before RoPE, per head [E] or over all heads [H E], or
            None.
        k_norm: the same for keys, [E] or [J E].
        eps: epsilon of those norms.
        softcap: scores become ``cap * tanh(score / cap)`` before the mask (Gemma 2); 0 = none.
        local_rope: rotate by the step's ``rope_local`` (Gemma 3's sliding layers).
        interleaved: rotated pairs are neighbours (GLM), else they are half the rotation apart.
        sinks: logits float32 [H] that take a share of the softmax and have no value (gpt-oss), or
            None.
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
    interleaved: bool = False
    sinks: Tensor | None = None

    @property
    def whole_norms(self) -> bool:
        """Whether q and k are normed over all heads of a token at once."""
        return self.q_norm is not None and self.q_norm.shape[0] != self.head_dim


@dataclass(frozen=True, slots=True)
class DeltaShape(DeltaHeads):
    """One layer of the gated delta rule: head counts, sizes and the heads' own numbers.

    Attributes:
        rate: float32 [value_heads], what the decay's exponent is multiplied by, below 0.
        bias: float32 [value_heads], added to the inputs of the decay.
        tiled: value head h goes with key head ``h % key_heads``, not with its share of them.
    """

    rate: Tensor
    bias: Tensor
    tiled: bool = False


@dataclass(frozen=True, slots=True)
class MixtureShape:
    """How a mixture chooses its experts, and what they are.

    Attributes:
        per_token: experts that a token goes through.
        normalize: the shares of a token's experts are scaled to a sum of 1.
        activation: of their gates and ups.
    """

    per_token: int
    normalize: bool
    activation: Activation = "silu"


class ExpertMixture(Protocol):
    """All experts of a layer in a backend's own layout, for one call."""

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one token reads."""
        ...

    def add(self, h_TD: Tensor, scores_TE: Tensor, residual_TD: Tensor) -> None:
        """Add to the residual [T, D] what the experts make of ``h`` [T, D], by a router's scores.

        They are the numbers of each expert in a softmax over all; what a token's best experts give
        is added by share.
        """
        ...


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


P = TypeVar("P", bound=PackedLinear)
Packed = TypeVar("Packed", bound=PackedLinear)
Taken = TypeVar("Taken", bound=PackedLinear, contravariant=True)


class Packer(Protocol[Packed]):
    """Brings canonical weights into a backend's own layout, once, while a model is loaded.

    ``Packed`` is the backend's own packed weight; only the backend looks inside.
    """

    def supports(self, weight: Weight) -> str | None:
        """None when the weight can be packed, else the reason why not."""
        ...

    def supports_heads(self, head_dim: int) -> str | None:
        """None when heads of this size can be attended with, else the reason why not."""
        ...

    def pack(self, weight: Weight, bias: Tensor | None = None) -> Packed:
        """Pack a linear weight [N, K] once. Raises UnsupportedWeightError."""
        ...

    def pack_embedding(self, weight: Weight) -> Packed:
        """Pack an embedding table [V, D] for :meth:`Ops.embed`; it may serve as LM head, too."""
        ...

    def pack_gated(
        self, weight: Weight, bias: Tensor | None = None, activation: Activation = "silu"
    ) -> Packed | None:
        """Pack gate over up [2 I, K] so that :meth:`Ops.linear` gives ``act(gate) * up`` [T, I].

        None when the backend has no such kernel for the format.
        """
        ...

    def pack_mixture(
        self, experts: Sequence[tuple[Packed, Packed]], shape: MixtureShape
    ) -> ExpertMixture | None:
        """Packed gate-up and down matrices [N, K] of a layer's experts as one.

        None where the backend has no such product for them: they are gone through one by one.
        """
        ...


class Ops(Protocol[Taken]):
    """What ``Decoder.forward`` calls; see :mod:`halfbyte.kernels.reference` for the meanings.

    Whether an op computes at once or is noted down is the affair of the backend and its executor.

    Attributes:
        dtype: activation type.
    """

    dtype: torch.dtype

    def embed(self, ids_T: Tensor, table: Taken, scale: float = 1.0) -> Tensor:
        """``scale`` times rows of a packed [V, D] matrix -> residual [T, D]."""
        ...

    def rms_norm(
        self,
        x_TD: Tensor,
        weight_D: Tensor,
        eps: float,
        rows: Tensor | None = None,
        readers: Sequence[Taken] = (),
    ) -> Tensor:
        """RMSNorm of all rows -> [T, D], or of the rows that int64 ``rows`` [S] names.

        ``readers`` are the matrices that all of it is for, if nobody else looks at it: what comes
        out may be in a form that only their products read.
        """
        ...

    def linear(self, x_TK: Tensor, weight: Taken, out: Tensor | None = None) -> Tensor:
        """``x @ W.T + bias`` -> [T, N], into ``out`` (rows may be strided) when given."""
        ...

    def linear_add(self, x_TK: Tensor, weight: Taken, residual_TN: Tensor) -> None:
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

    def center(self, x_TD: Tensor) -> None:
        """Subtract from each row of a residual [T, D] its mean, in place.

        A LayerNorm without a bias is the RMSNorm of what is left. Whoever reads the residual does
        so through LayerNorms, which do not see the mean.
        """
        ...

    def add(self, x_TD: Tensor, residual_TD: Tensor) -> None:
        """``residual += x`` in place, for x [T, D]."""
        ...

    def gated_mul(
        self,
        gate_up_TI2: Tensor,
        activation: Activation = "silu",
        readers: Sequence[Taken] = (),
    ) -> Tensor:
        """``act(gate) * up`` -> [T, I]; ``readers`` as for :meth:`rms_norm`."""
        ...

    def flush(self) -> None:
        """Compute what was noted down so far, so that its results can be looked at."""
        ...


class RecurrentOps(Protocol):
    """The ops of blocks that keep a state once per sequence, and of the attention beside them.

    C channels, H value heads; slots of states as in ``StepInputs.states``.
    """

    def conv_tail(self, x_TN: Tensor, weight_KC: Tensor, tails: Tensor, step: StepInputs) -> Tensor:
        """Causal convolution and SiLU of the first C columns, each span after its tail -> [T, C].

        Replaces the tails, float32 [slots, K - 1, C]. The weight has the oldest input's row first.
        """
        ...

    def gated_delta(
        self, x_TC: Tensor, ba_TG: Tensor, shape: DeltaShape, states: Tensor, step: StepInputs
    ) -> Tensor:
        """The gated delta rule on queries, keys and values side by side -> [T, H * value_dim].

        ``ba`` [T, 2 H] are what beta and decay are made of. Replaces the states, float32
        [slots, H, key_dim, value_dim].
        """
        ...

    def gated_norm(self, x_TV: Tensor, z_TN: Tensor, weight_E: Tensor, eps: float) -> Tensor:
        """RMSNorm of each head of E elements, times SiLU of the last V columns of ``z`` -> [T, V],
        which may be in a form that only the next product reads.
        """
        ...

    def sigmoid_mul(self, x_TD: Tensor, gate_TD: Tensor) -> None:
        """``x *= sigmoid(gate)`` in place; the gate is [T, D], or [T, 1] for all of a row."""
        ...


class Drawer(Protocol):
    """Draws tokens from computed logits.

    Attributes:
        device: where the logits lie.
        reads_late: whoever reads the tokens waits for the device, which could go on meanwhile.
    """

    device: torch.device
    reads_late: bool

    def argmax(self, logits_SV: Tensor) -> Tensor:
        """Index of each row's largest logit, int64 [S].

        -1 for a row with a NaN, or whose largest logit is infinite.
        """
        ...

    def sample(self, logits_SV: Tensor, rows: Sequence[RowSampling]) -> Tensor | None:
        """One token for each row of logits, int64 [S]; -1 as :meth:`argmax`.

        None when the backend leaves the draw to the host.
        """
        ...


@dataclass(frozen=True, slots=True)
class Backend(Generic[P]):
    """One way to compute: the parts that an engine is put together from.

    Attributes:
        name: for tables and messages.
        detail: how it computes, in words.
        device: where weights, activations and the KV cache lie.
        kv_dtype: KV cache type; int8 and float8_e4m3fn are codes with scales.
        packer: brings weights into the layout of ``ops``.
        ops: the arithmetic of a step.
        drawer: draws tokens.
        executor: makes what runs the steps of a network.
        recurrent: the ops of models with states; None where there are no kernels for them.
    """

    name: str
    detail: str
    device: torch.device
    kv_dtype: torch.dtype
    packer: Packer[P]
    ops: Ops[P]
    drawer: Drawer
    executor: ExecutorFactory
    recurrent: RecurrentOps | None = None
