"""A kind of weight: one object that owns it, from the plan made of headers to the product.

``kernels/<kind>/kind.py`` holds one for each way in which the kernels keep a weight. Backends hold
them in an ordered tuple, and the first that accepts a weight carries it, see :func:`carrier`.
Nothing here imports triton.

Shape letters: M rows of activations, N rows and K columns of a weight, G groups along K.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from halfbyte.errors import KernelInputError, UnsupportedWeightError

from .formats.canonical import QuantizedLinear, Weight
from .formats.stored import StoredLinear
from .formats.weight_format import CompactForm, InputRule, WeightFormat, ZeroKind

if TYPE_CHECKING:
    from .codegen.variant import Variant
    from .device.expert_tiles import ExpertLoad, ExpertTiles
    from .device.gpus import Device
    from .device.input_rounding import InputRounding, RoundedRows
    from .device.workspace import Workspace
    from .tables import Tables
    from .tables.tuning import TunedProblem, Tuning

BUCKETS: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Rows of activations that choices are made for: as many, or fewer down to the one before."""

NO_CODES = "the weights have no codes"
QUANTIZED_INPUTS = "activations are quantized: 8-bit products are asked for"
PLAIN_INPUTS = "activations are not quantized"
NO_GATE = "no kernel of it ends in silu(gate) * up"
NO_ROWS = "no kernel reads single rows of such codes"


@dataclass(frozen=True, slots=True)
class MatrixSpec:
    """A weight matrix as headers know it: all that its kernel and its packed size depend on.

    Attributes:
        n: rows.
        k: columns.
        format: what its codes mean; None for dense weights.
        dtype: ``F32``, ``F16`` or ``BF16``: of dense numbers, or of scales and offsets as loaded.
        half: float16 holds each of these scales and offsets, as far as headers tell.
        gated: gate over up, for a product that ends in ``silu(gate) * up``.
        table: an embedding, of which single rows are read; it may be the LM head, too.
        encoding: how the file stores the codes, where a backend may pack such bytes as they are: a
            GGUF block type, or "".
        compact: how the file has scales and offsets, where a backend may keep them so.
    """

    n: int
    k: int
    format: WeightFormat | None
    dtype: str = "F16"
    half: bool = True
    gated: bool = False
    table: bool = False
    encoding: str = ""
    compact: CompactForm | None = None

    @classmethod
    def of(cls, weight: Weight, gated: bool = False, table: bool = False) -> MatrixSpec:
        """What decides which kind carries a loaded weight [N, K]; types of numbers do not."""
        n, k = weight.shape
        if isinstance(weight, Tensor):
            return cls(n, k, None, gated=gated, table=table)
        form = replace(weight.format, permuted=weight.perm is not None)
        stored = weight.encoding if isinstance(weight, StoredLinear) else ""
        compact = weight.compact_form
        return cls(n, k, form, gated=gated, table=table, encoding=stored, compact=compact)

    def under(self, rule: InputRule) -> MatrixSpec:
        """The matrix in a run with a rule; embeddings are read by rows and stay as they are."""
        form = self.format
        return self if form is None or self.table else replace(self, format=form.under(rule))


class Kind(Protocol):
    """One way to keep weights, on any backend.

    Attributes:
        name: for tables and messages, such as ``w4a16``.
    """

    name: str

    def accepts(self, spec: MatrixSpec, arch: int) -> str | None:
        """None when a weight can be carried on ``sm_<arch>``, else the reason why not.

        0 stands for the interpreter, for other makers' GPUs and for CPUs.
        """
        ...

    def packed_bytes(self, spec: MatrixSpec) -> int:
        """Bytes of an accepted weight in this layout, its bias apart."""
        ...


@dataclass(frozen=True, slots=True)
class Conditions:
    """Where and how a product runs, as far as the choice of its kernel depends on it.

    Attributes:
        device: the GPU.
        fp16: activations are float16, else bfloat16.
        exact: the bits of a row must not depend on the number of rows.
        tables: tuned configurations.
    """

    device: Device
    fp16: bool = False
    exact: bool = False
    tables: Tables | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """What runs for a product, and why.

    Attributes:
        kernel: the kernel of the kind.
        config: its launch parameters.
        source: ``table``, ``neighbour``, ``formula``, ``exact`` or ``library``.
        detail: which table and entry, or why this kind; "" where other kinds' reasons say it.
        rejected: the kind's other kernels, each with its reason.
    """

    kernel: str
    config: dict[str, Any]
    source: str
    detail: str = ""
    rejected: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KindCase:
    """A format that a kind carries and that is worth timing and checking.

    Attributes:
        format: of a random weight.
        gated: laid out for a product that ends in ``silu(gate) * up``.
    """

    format: WeightFormat
    gated: bool = False


@dataclass(frozen=True, slots=True)
class ProductContext:
    """What all products of a backend have in common.

    Attributes:
        workspace: of the stream that they run on.
        exact: each row gets the same bits whatever other rows there are.
        overrides: tuned configurations, as ``Conditions.tables`` has them.
    """

    workspace: Workspace
    exact: bool = False
    overrides: Mapping[str, Mapping[str, Any]] | None = None


class PackedWeight(Protocol):
    """A weight in the layout of its kind."""

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        ...


PackedT = TypeVar("PackedT", bound=PackedWeight)


class TritonKind(Kind, Protocol[PackedT]):
    """One way to keep weights for the Triton kernels; ``PackedT`` is its packed form.

    Attributes:
        cases: what benches and GPU checks run, the most usual first.
        reorders: inputs are to be handed over in the order of the codes' columns; else packing
            puts the columns back into the order of the inputs.
        rounds: inputs are rounded as the weight's format says; else they stay in 16 bits.
        peers: names of other people's kernels for such products, beside dense ones.
        tuning: what tuned tables hold for it, or None for a kind without tables.
    """

    cases: tuple[KindCase, ...]
    reorders: bool
    rounds: bool = False
    peers: tuple[str, ...] = ()
    tuning: Tuning | None = None

    def choose(self, spec: MatrixSpec, m: int, where: Conditions) -> Chosen:
        """What :meth:`linear` runs for ``m`` rows and an accepted weight."""
        ...

    def problem(self, spec: MatrixSpec, m: int, where: Conditions) -> TunedProblem | None:
        """The problem of ``m`` rows as tuned tables know it; None for a kind without tables."""
        return None

    def pack(
        self, weight: Weight, dtype: torch.dtype, device: torch.device, gated: bool
    ) -> PackedT:
        """An accepted weight [N, K] on ``device``, for activations in ``dtype``."""
        ...

    def rounding(self, weight: PackedT) -> InputRounding | None:
        """How products round their inputs; None where these stay in 16 bits."""
        return None

    def linear(
        self,
        x_MK: Tensor,
        weight: PackedT,
        bias: Tensor | None,
        residual: Tensor | None,
        out: Tensor | None,
        context: ProductContext,
    ) -> Tensor:
        """``x @ W.T + bias``, ``silu(gate) * up`` of it when gated, ``+ residual`` -> [M, N].

        ``out`` [M, N] is contiguous and may be ``residual``.
        """
        ...

    def rounded_linear(
        self,
        x: RoundedRows,
        weight: PackedT,
        bias: Tensor | None,
        residual: Tensor | None,
        out: Tensor | None,
        context: ProductContext,
    ) -> Tensor:
        """:meth:`linear` -> [M, N] of inputs that were rounded as :meth:`rounding` says.

        Raises KernelInputError in a kind whose inputs stay in 16 bits.
        """
        raise KernelInputError(f"{self.name}: inputs are not rounded")

    def stack(self, weights: Sequence[PackedT]) -> PackedT | None:
        """Matrices [N, K] of a layer's experts as one for :meth:`grouped_linear`.

        None where they are packed in different ways, or there is no such product.
        """
        return None

    def tile_rows(
        self, weight: PackedT, load: ExpertLoad, dtype: torch.dtype, context: ProductContext
    ) -> int:
        """Rows of inputs in ``dtype`` that a tile of :meth:`grouped_linear` has at most.

        Raises KernelInputError in a kind without such a product.
        """
        raise KernelInputError(f"{self.name}: no product over several experts")

    def grouped_linear(
        self,
        x_PK: Tensor,
        weight: PackedT,
        bias: Tensor | None,
        tiles: ExpertTiles,
        context: ProductContext,
    ) -> Tensor:
        """:meth:`linear` of inputs [P, K], each with the matrix of its expert -> [P, N].

        ``weight`` is from :meth:`stack`, ``bias`` [E, N]; tiles have a multiple of
        :meth:`tile_rows`. Rows of tiles that are nobody's are left unset. Raises
        KernelInputError in a kind without such a product.
        """
        raise KernelInputError(f"{self.name}: no product over several experts")

    def prepared(
        self, x_MK: Tensor, weight: PackedT, out: Tensor, context: ProductContext
    ) -> Callable[[PackedT], Tensor]:
        """:meth:`linear` of x [M, K] into ``out`` [M, N] with weights like this one, to be timed.

        What a layer's products share, such as rounded inputs, is made ready beforehand.
        """
        return lambda w: self.linear(x_MK, w, None, None, out, context)

    def seen(self, x_MK: Tensor, weight: PackedT) -> Tensor:
        """Inputs [M, K] as products see them, rounded where the kernels round: float64."""
        return x_MK.double()

    def gather(self, ids_T: Tensor, weight: PackedT, dtype: torch.dtype, factor: float) -> Tensor:
        """``factor`` times rows of an embedding [V, D] -> [T, D].

        Raises KernelInputError in a kind that accepts no embeddings.
        """
        raise KernelInputError(f"{self.name}: {NO_ROWS}")

    def variants(self, arch: int) -> Iterator[Variant]:
        """What the codegen gate compiles for ``sm_<arch>``."""
        ...


K = TypeVar("K", bound=Kind)


@dataclass(frozen=True, slots=True)
class Carrier(Generic[K]):
    """The kind that carries a weight.

    Attributes:
        kind: the first that accepts it.
        spec: the weight as the kind takes it: not gated where no kind has such kernels.
        rejected: the kinds before it, each with its reason.
    """

    kind: K
    spec: MatrixSpec
    rejected: dict[str, str]


def carrier(kinds: Sequence[K], spec: MatrixSpec, arch: int) -> Carrier[K]:
    """The first of ``kinds`` that accepts a weight on ``sm_<arch>``.

    Raises UnsupportedWeightError with the reason of each.
    """
    rejected: dict[str, str] = {}
    for kind in kinds:
        reason = kind.accepts(spec, arch)
        if reason is None:
            return Carrier(kind, spec, rejected)
        rejected[kind.name] = reason
    if spec.gated:
        return carrier(kinds, replace(spec, gated=False), arch)
    raise UnsupportedWeightError(refusal(rejected))


def refusal(rejected: Mapping[str, str]) -> str:
    """Reasons in words, kinds that share one together."""
    shared: dict[str, list[str]] = {}
    for name, reason in rejected.items():
        shared.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in shared.items())


def no_integers(form: WeightFormat | None) -> str | None:
    """None for integer codes with inputs that stay in 16 bits, else what the weight is instead."""
    if form is None:
        return NO_CODES
    if form.zero == "e4m3":
        return "codes are float8, not integers"
    if form.act is not None:
        return QUANTIZED_INPUTS
    return "codes index a table" if form.zero == "table" else None


def unpacked(weight: QuantizedLinear, device: torch.device) -> tuple[Tensor, Tensor]:
    """Codes uint8 [N, K], one per element and contiguous, and scales [N, G], on a device."""
    return weight.unpack().contiguous().to(device), weight.scales.to(device)


def recentred(weight: QuantizedLinear, center: int) -> tuple[ZeroKind, Tensor | None]:
    """Zero kind and zeros [N, G] of integer codes, for a kernel with ``center`` where symmetric."""
    own = 1 << (weight.format.bits - 1)
    if weight.format.zero == "none" and own != center:
        return "int", torch.full_like(weight.scales, own, dtype=torch.float32)
    return weight.format.zero, weight.zeros


def entries(form: WeightFormat, k: int, size: int) -> int:
    """Groups of a row's table of scales, with those that kernels read ahead.

    ``size`` is the k of one step; groups that are no whole steps are cut into pieces that are.
    """
    if form.group_size == -1:
        return 2
    group = form.group_size if form.group_size % size == 0 else math.gcd(form.group_size, size)
    return -(-round_up(k, size) // group) + max(size // group, 1)


def round_up(value: int, step: int) -> int:
    """The least multiple of ``step`` that is not below ``value``."""
    return -(-value // step) * step
