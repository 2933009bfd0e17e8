"""GPTQ: ``qweight``, ``qzeros``, ``scales`` and often ``g_idx`` for each linear module.

``w[n, k] = scales[g, n] * (q[k, n] - zero[g, n])`` with ``g = g_idx[k]``. Shape letters: N and K
output and input features, G groups, R words of 32 bits along K.

Two things are decided from the data. Version 1 stores zero points less 1, version 2 as they are;
labels are often wrong, and of symmetric modules the stored zeros tell. And columns are permuted
(act-order) where ``g_idx`` says so, whatever ``desc_act`` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ....kernels.formats.canonical import WeightFormat
from ....kernels.formats.stored import WORDS, StoredLinear
from ...files.safetensors_index import StoredTensor
from ...model.report import LoadReport
from . import checks, words
from .base import FolderTensors, Method, QuantizedModule, Read
from .gptq_config import GPTQConfig, Version, read_gptq_config
from .overrides import Said

if TYPE_CHECKING:
    from torch import Tensor

    from ....kernels.formats.canonical import Weight

BITS = (2, 3, 4, 8)
# Rows of zeros looked at when the folder is opened.
SAMPLED = 8


@dataclass(frozen=True, slots=True)
class _Plan:
    """How to load a module, decided when the folder was opened.

    ``group`` is -1 for one group over K. ``order`` int64 [K] sorts permuted columns by group;
    ``g_idx`` int64 [K] is kept where the groups are not runs of equal length after sorting.
    ``switched`` says that the zeros contradict the label, and were only sampled.
    """

    bits: int
    group: int
    version: Version
    switched: bool
    order: Tensor | None = None
    g_idx: Tensor | None = None


class GPTQ(Method):
    """A folder quantized by GPTQ; weights are [N, K]."""

    name = "gptq"

    def __init__(self, config: GPTQConfig, report: LoadReport) -> None:
        super().__init__(config.where, report)
        self._config = config
        self._notes = _Notes(config, report)
        self._parts: dict[str, dict[str, StoredTensor]] = {}
        self._plans: dict[str, _Plan] = {}

    def modules(self, tensors: FolderTensors) -> list[QuantizedModule]:
        """See :class:`~.base.Method`."""
        required, optional = ("qweight", "qzeros", "scales"), ("g_idx",)
        self._parts = checks.gather(self._place, tensors, required, optional)
        found = super().modules(tensors)
        self._notes.tell(len(found))
        return found

    def _module(
        self, module: str, shape: tuple[int, int], tensors: FolderTensors
    ) -> QuantizedModule | None:
        parts = self._parts.get(module)
        if parts is None:
            return None
        (n, k), notes, read = shape, self._notes, tensors.read
        said = self._config.said(module)
        bits, groups, group = self._check(module, parts, (n, k), said, notes)
        order, g_idx = None, None
        if "g_idx" in parts:
            group, order, g_idx = self._order(parts["g_idx"], k, groups, group, read)
        if said.group not in (None, -1, group) and group != -1:
            notes.groups.append(f"{module} ({said.group} by config, {group} by tensors)")
        version, seen = self._version(parts["qzeros"], bits, n, said, read, notes)
        self._plans[module] = _Plan(
            bits, group, version, seen not in (None, self._config.version), order, g_idx
        )
        label = f"GPTQ {bits}-bit {'per channel' if group == -1 else f'g{group}'}"
        label += " sym" if said.sym else " asym"
        decided = [f"zeros {version}" + (" by data" if seen else " by label")]
        if order is not None or g_idx is not None:
            label += " act-order"
            notes.permuted.append(module)
        if g_idx is not None:
            notes.irregular.append(module)
        if "bias" in parts:
            notes.biases.append(module)
            decided.append("zero bias dropped")
        form = None
        if g_idx is None:
            zero = "none" if said.sym else "int"
            form = WeightFormat(bits, group, zero, permuted=order is not None)
        dtype = "F32" if form is None else parts["scales"].dtype
        return QuantizedModule(
            module, (n, k), label, parts, form, tuple(decided), dtype, half=dtype != "F32"
        )

    def _check(
        self,
        module: str,
        parts: Mapping[str, StoredTensor],
        shape: tuple[int, int],
        said: Said,
        notes: _Notes,
    ) -> tuple[int, int, int]:
        """Bits, number of groups and group size (-1: one group), from shapes and config."""
        (n, k), where = shape, self._place
        qweight, qzeros, scales = (parts[name] for name in ("qweight", "qzeros", "scales"))
        checks.check_dtype(where, qweight, ("I32",))
        checks.check_dtype(where, qzeros, ("I32",))
        checks.check_dtype(where, scales, checks.FLOAT_NAMES)
        if said.quantized and said.bits is not None and said.bits not in BITS:
            raise UnsupportedModelError(
                f"{where}: {module} has {said.bits} bits; supported are 2, 3, 4 and 8"
            )
        for tensor in (qweight, qzeros, scales):
            if len(tensor.shape) != 2 or 0 in tensor.shape:
                raise CheckpointError(
                    f"{where}: tensor {tensor.name} is {list(tensor.shape)}; expected a matrix"
                )
        rows, columns = qweight.shape[0], qzeros.shape[1]
        if qweight.shape[1] != n:
            checks.check_shape(where, qweight, (rows, n), f"{n} output features")
        fits = [b for b in BITS if (_words(k, b), _words(n, b)) == (rows, columns)]
        if not fits or (said.bits not in fits and len(fits) > 1):
            wanted = said.bits if said.bits in BITS else 4
            raise CheckpointError(
                f"{where}: {module} has qweight {list(qweight.shape)} and qzeros "
                f"{list(qzeros.shape)}; expected {_words(k, wanted)} rows and "
                f"{_words(n, wanted)} columns for {wanted} bits of a [{n}, {k}] weight",
                hint="the config and the weights belong together for no number of bits"
                if not fits
                else "the number of bits is missing in the config",
            )
        bits = said.bits if said.bits in fits else fits[0]
        if said.bits not in (None, bits):
            notes.bits.append(f"{module} ({said.bits} by config, {bits} by tensors)")
        if not said.quantized:
            notes.plain.append(module)
        groups = scales.shape[0]
        group = k if said.group is None or said.group == -1 else min(said.group, k)
        if groups != -(-k // group):
            # The tensors tell the size where it divides K into groups of a usual size.
            if k % groups or k // groups % 16:
                expected = (-(-k // group), n)
                checks.check_shape(where, scales, expected, f"groups of {group} over K={k}")
            group = k // groups
        checks.check_shape(where, scales, (groups, n), f"{n} output features")
        checks.check_shape(where, qzeros, (groups, columns), f"{groups} groups as in scales")
        return bits, groups, -1 if groups == 1 else group

    def _order(
        self, tensor: StoredTensor, k: int, groups: int, group: int, read: Read
    ) -> tuple[int, Tensor | None, Tensor | None]:
        """Group size, order [K] that sorts columns, g_idx [K] where sorting is not enough."""
        checks.check_dtype(self._place, tensor, ("I32", "I64"))
        checks.check_shape(self._place, tensor, (k,), f"{k} input features")
        g_idx = read(tensor).to(torch.int64, copy=True)
        low, high = int(g_idx.min()), int(g_idx.max())
        if low < 0 or high >= groups:
            raise CheckpointError(
                f"{self._place}: tensor {tensor.name} holds {low if low < 0 else high}; expected "
                f"group numbers from 0 to {groups - 1}",
                hint="the file is damaged or crafted: such an index reads outside of the scales",
            )
        order = torch.argsort(g_idx, stable=True)
        ranked = g_idx[order]
        # The config's size, or, where that is wrong, the one that group 0 has.
        for size in (k if group == -1 else group, int((g_idx == 0).sum())):
            if size and torch.equal(ranked, torch.arange(k) // size):
                in_place = torch.equal(g_idx, ranked)
                return -1 if groups == 1 else size, None if in_place else order, None
        return group, None, g_idx

    def _version(
        self, qzeros: StoredTensor, bits: int, n: int, said: Said, read: Read, notes: _Notes
    ) -> tuple[Version, Version | None]:
        """(version to use, version that the data shows or None)."""
        words_GW = read(qzeros)
        step = -(-words_GW.shape[0] // SAMPLED)
        seen = _symmetric_version(words.fields(words_GW[::step], bits, n), bits)
        label = self._config.version
        if not said.sym:
            notes.asymmetric += 1
            if seen not in (None, label):
                notes.unsure.append(qzeros.name)
            return label, None
        if seen is None:
            if not self._config.firm:
                raise CheckpointError(
                    f"{self._place}: sym is true but {qzeros.name} is not constant as symmetric "
                    f"zeros are, and {self._config.label} does not say how zeros are stored",
                    hint="set sym to false if the model was quantized asymmetrically",
                )
            notes.uneven.append(qzeros.name)
        elif seen == label or not self._config.firm:
            notes.confirmed += 1
        else:
            notes.switched.append(qzeros.name)
        return seen or label, seen

    def load(self, module: QuantizedModule, read: Read) -> Weight:
        """See :class:`~.base.Method`: [N, K], dense float32 where groups are irregular.

        Others become a ``StoredLinear`` of words.
        """
        plan, parts = self._plans[module.module], module.parts
        n, k = module.shape
        bits = plan.bits
        stored_GN = read(parts["scales"])
        scales = words.turned(checks.finite(self._place, parts["scales"].name, stored_GN))
        zeros_GN = self._zeros(parts["qzeros"], plan, n, read)
        middle = bool((zeros_GN == 1 << (bits - 1)).all())
        name, zeros = f"{module.module}.weight", None if middle else words.turned(zeros_GN)
        permuted = plan.order is not None
        form = WeightFormat(bits, plan.group, "none" if middle else "int", permuted=permuted)
        stored = read(parts["qweight"])
        if plan.g_idx is not None:
            codes = words.stream_from_columns(stored, bits, k)
            return words.dense(codes, bits, scales, zeros, plan.g_idx)
        perm = None if plan.order is None else plan.order.to(torch.int32)
        convert = partial(_codes, stored, bits, k, plan.order)
        return StoredLinear.of_codes(
            name, form, (n, k), WORDS, stored, scales, zeros, convert, perm
        )

    def _zeros(self, qzeros: StoredTensor, plan: _Plan, n: int, read: Read) -> Tensor:
        """True zero points, uint8 [G, N]."""
        words_GW = read(qzeros)
        if plan.version == "v1":
            zeros = words.fields_plus_one(words_GW, plan.bits, n)
        else:
            zeros = words.fields(words_GW, plan.bits, n)
        if plan.switched and not bool((zeros == 1 << (plan.bits - 1)).all()):
            raise CheckpointError(
                f"{self._place}: tensor {qzeros.name} begins as symmetric zeros of {plan.version} "
                f"but is not constant, and {self._config.label}: it cannot be told what its "
                "zeros are",
                hint="correct checkpoint_format, or set sym to false",
            )
        return zeros


class _Notes:
    """What was seen in the modules of one folder, told once for all of them."""

    def __init__(self, config: GPTQConfig, report: LoadReport) -> None:
        self._config, self._report = config, report
        self.confirmed = self.asymmetric = 0
        self.switched: list[str] = []
        self.uneven: list[str] = []
        self.unsure: list[str] = []
        self.bits: list[str] = []
        self.groups: list[str] = []
        self.plain: list[str] = []
        self.permuted: list[str] = []
        self.irregular: list[str] = []
        self.biases: list[str] = []

    def tell(self, modules: int) -> None:
        """Put decisions and warnings into the report."""
        config, report = self._config, self._report
        version = config.version
        other = "v2" if version == "v1" else "v1"
        if not modules:
            report.warn(f"{config.where} names a method but no tensor is quantized")
            return
        report.decide(
            f"GPTQ zeros: {config.label} means {version} (zero points "
            f"{'less 1' if version == 'v1' else 'as they are'}); of {modules} modules the data "
            f"of {self.confirmed} confirm it, of {len(self.switched)} contradict it, and "
            f"{self.asymmetric} are asymmetric, where only the label can tell"
            if config.firm
            else f"GPTQ zeros: by data for {self.confirmed} symmetric modules; {version} for "
            f"{self.asymmetric} asymmetric ones ({config.label})"
        )
        for names, text in (
            (self.switched, f"zeros are those of {other}, not of {config.label}; {other} is used"),
            (self.uneven, f"sym is true but zeros are not constant; read as {version}"),
            (self.unsure, f"sym is false but zeros look symmetric as {other}; read as {version}"),
            (self.bits, "the number of bits in the config is wrong; the tensors are followed"),
            (self.groups, "group_size in the config is wrong; the tensors are followed"),
            (self.plain, "quantized although the config says not; the tensors are followed"),
        ):
            if names:
                report.warn(f"{text}: {_some(names)}")
        if version == "v1" and self.asymmetric and not config.careful:
            report.warn(
                "asymmetric zeros in the gptq format by an unknown or old writer: where a zero "
                "point was 0, some writers destroyed its neighbours; a gptq_v2 file has no such "
                "problem"
            )
        if self.permuted:
            report.decide(
                f"act-order: columns sorted by group at load in {len(self.permuted)} modules"
            )
        if self.irregular:
            report.decide(f"groups of unequal size: kept as dense float32: {_some(self.irregular)}")
        if self.biases:
            report.decide(f"zero biases that the model does not have dropped: {len(self.biases)}")


def open_gptq(place: str, config: Mapping[str, Any], report: LoadReport) -> GPTQ:
    """The method of ``quant_method: gptq``; see :func:`.gptq_config.read_gptq_config`."""
    return GPTQ(read_gptq_config(place, config), report)


def _words(count: int, bits: int) -> int:
    """Words of 32 bits that hold ``count`` codes."""
    return -(-count * bits // 32)


def _symmetric_version(fields_GN: Tensor, bits: int) -> Version | None:
    """The version in which stored fields [G, N] are symmetric zeros throughout, or None."""
    middle, first = 1 << (bits - 1), int(fields_GN[0, 0])
    if first not in (middle - 1, middle) or not bool((fields_GN == first).all()):
        return None
    return "v2" if first == middle else "v1"


def _codes(words_RN: Tensor, bits: int, k: int, order: Tensor | None) -> Tensor:
    """Canonical codes uint8 [N, K * bits / 8] of words [R, N], columns in ``order``."""
    codes = words.stream_from_columns(words_RN, bits, k)
    if order is not None:
        words.reorder(codes, bits, order)
    return codes


def _some(names: list[str]) -> str:
    """Up to three names and the number of the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
