"""bitsandbytes' 4-bit weights: the state beside the codes, and their meaning.

The codes of a matrix [N, K] form one flat array, two to a byte, the first in the high half. A
block of ``blocksize`` neighbours shares a scale (``absmax``) and may go over the end of a row;
each code indexes ``quant_map``. With double quantization the scales are 8-bit codes themselves.

Source: bitsandbytes 0.50, ``functional.py`` (``QuantState``, ``dequantize_4bit``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ....kernels.formats.weight_format import CompactForm, Rounded, WeightFormat
from ...files.fields import Fields
from ...files.json_text import parse_object
from ...files.safetensors_index import StoredTensor
from .base import QuantizedModule, Read
from .checks import expect, finite, missing

if TYPE_CHECKING:
    from torch import Tensor

    from ....kernels.formats.canonical import Weight
    from ....kernels.formats.compact import CodedScales

STATE = "weight.quant_state.bitsandbytes__"
TABLE_NAMES = ("nf4", "fp4")
Dtype = Literal["float16", "bfloat16", "float32"]
_DTYPES: dict[str, Dtype] = {
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float32": "float32",
}
# bnb_4bit_quant_storage: the same bytes under another type.
STORAGE = {"U8": "uint8", "F16": "float16", "BF16": "bfloat16", "F32": "float32"}
# The kernels' tables of scales know groups of these multiples.
LEAST_GROUP = 32
MAX_STATE_BYTES = 1 << 14
_NESTED = ("nested_blocksize", "nested_dtype", "nested_offset")
# Elements turned to float32 at once where a matrix becomes dense: whole blocks of every size.
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class State4:
    """What ``quant_state`` says of one matrix.

    Attributes:
        kind: ``nf4`` or ``fp4``.
        blocksize: weights that share a scale, a power of two from 16 to 4096.
        dtype: what the weights were, and what the tool rounds them to: ``float16`` ...
        shape: (N, K).
        nested_blocksize: scales that share a scale of theirs, 0 without double quantization.
        nested_offset: added to every scale.
    """

    kind: str
    blocksize: int
    dtype: Dtype
    shape: tuple[int, int]
    nested_blocksize: int = 0
    nested_offset: float = 0.0

    @property
    def blocks(self) -> int:
        """Number of scales."""
        return -(-math.prod(self.shape) // self.blocksize)

    @property
    def group(self) -> int:
        """Longest run along K that never crosses a row or a block."""
        return math.gcd(self.blocksize, self.shape[1])

    @property
    def dense(self) -> bool:
        """Whether the blocks fit no grid of groups within rows."""
        return self.group % LEAST_GROUP != 0

    @property
    def held_as(self) -> str:
        """``F32``, ``F16`` or ``BF16``: of the scales as loaded, or of the dense weights."""
        names = {name: short for short, name in STORAGE.items()}
        return names[self.dtype] if self.dense else "F32"

    @property
    def half(self) -> bool:
        """Whether float16 holds the scales: largest weights of 16 bits, not sums of products."""
        return self.dtype != "float32" and not self.nested_blocksize

    @property
    def compact(self) -> CompactForm | None:
        """How scales stay codes, where double quantization made them such."""
        if self.dense or not self.nested_blocksize:
            return None
        return CompactForm("F32", self.nested_blocksize * (self.blocksize // self.group))

    @property
    def form(self) -> WeightFormat:
        """Canonical format, the table left out, where the weights are not dense."""
        rounds: Rounded = "" if self.dtype == "float32" else self.dtype
        return WeightFormat(4, self.group, "table", rounds=rounds)

    @property
    def label(self) -> str:
        """For reports."""
        double = ", double quantization" if self.nested_blocksize else ""
        return f"bitsandbytes {self.kind.upper()} blocks of {self.blocksize}{double}"


def read_state(
    where: str, module: str, parts: Mapping[str, StoredTensor], shape: tuple[int, int], read: Read
) -> State4:
    """Parse and check the state of one module, and the headers of its parts.

    Args:
        where: folder, for messages.
        module: name without ``.weight``.
        parts: suffix -> header of what is stored under the module's name.
        shape: (N, K) by the config of the model.
        read: for the state's few bytes.

    Raises:
        CheckpointError: parts are missing or of the wrong type or shape; a value is out of range.
        UnsupportedModelError: types that current versions of the tool do not write either.
    """
    keys = [suffix for suffix in parts if suffix.startswith(STATE)]
    if len(keys) != 1 or keys[0].removeprefix(STATE) not in TABLE_NAMES:
        if not keys:
            raise missing(where, module, [f"{STATE}nf4"], "it says how to read the codes")
        raise CheckpointError(
            f"{where}: {module} has the states {', '.join(sorted(keys)[:4])}; expected one, "
            f"{' or '.join(STATE + kind for kind in TABLE_NAMES)}"
        )
    stored = parts[keys[0]]
    name = f"{where}: tensor {stored.name}"
    if stored.dtype != "U8" or len(stored.shape) != 1 or stored.nbytes > MAX_STATE_BYTES:
        raise CheckpointError(
            f"{name} is {stored.dtype} {list(stored.shape)}; expected U8 with at most "
            f"{MAX_STATE_BYTES} bytes of JSON"
        )
    values = parse_object(bytes(read(stored).tolist()), name, max_bytes=MAX_STATE_BYTES)
    state = _parse(Fields(name, values), keys[0].removeprefix(STATE), shape)
    _check_parts(where, module, parts, state)
    return state


def _parse(fields: Fields, kind: str, shape: tuple[int, int]) -> State4:
    if fields.text("quant_type") != kind:
        raise fields.error("quant_type", fields.values["quant_type"], f"'{kind}', as in the name")
    if fields.values.get("shape") != list(shape):
        raise fields.error("shape", fields.values.get("shape"), f"{list(shape)} by the config")
    if fields.text("dtype") not in _DTYPES:
        raise fields.error("dtype", fields.values["dtype"], f"one of {', '.join(_DTYPES)}")
    nested_blocksize, nested_offset = 0, 0.0
    if any(fields.present(key) for key in _NESTED):
        nested_blocksize = _power_of_two(fields, "nested_blocksize")
        nested_offset = fields.number("nested_offset", -3e38, 3e38)
        if fields.text("nested_dtype") != "float32":
            raise UnsupportedModelError(
                f"{fields.name('nested_dtype')} is {fields.values['nested_dtype']!r:.40}; "
                "supported is float32"
            )
    return State4(
        kind,
        _power_of_two(fields, "blocksize"),
        _DTYPES[fields.text("dtype")],
        shape,
        nested_blocksize,
        nested_offset,
    )


def _power_of_two(fields: Fields, key: str) -> int:
    value = fields.integer(key, 16, 4096)
    if value & (value - 1):
        raise fields.error(key, value, "a power of two from 16 to 4096")
    return value


def _check_parts(where: str, module: str, parts: Mapping[str, StoredTensor], state: State4) -> None:
    """Types and shapes of all parts."""
    double = state.nested_blocksize > 0
    needed = ["weight", "weight.absmax", "weight.quant_map"]
    if double:
        needed += ["weight.nested_absmax", "weight.nested_quant_map"]
    absent = [suffix for suffix in needed if suffix not in parts]
    if absent:
        raise missing(where, module, absent, "4-bit codes need it")
    codes = parts["weight"]
    nbytes = -(-math.prod(state.shape) // 2)
    if codes.dtype not in STORAGE or codes.nbytes != nbytes or codes.shape[1:] != (1,):
        raise CheckpointError(
            f"{where}: tensor {codes.name} is {codes.dtype} {list(codes.shape)}, {codes.nbytes} "
            f"bytes; expected a column of {nbytes} bytes for {list(state.shape)} in 4 bits"
        )
    expect(where, parts["weight.absmax"], ("U8",) if double else ("F32",), (state.blocks,))
    expect(where, parts["weight.quant_map"], ("F32",), (16,))
    if double:
        nested = -(-state.blocks // state.nested_blocksize)
        expect(where, parts["weight.nested_absmax"], ("F32",), (nested,))
        expect(where, parts["weight.nested_quant_map"], ("F32",), (256,))
    elif "weight.nested_absmax" in parts:
        raise CheckpointError(
            f"{where}: {parts['weight.nested_absmax'].name} is stored, but the quant_state has no "
            "nested_blocksize: the scales cannot be read"
        )


def load_4bit(where: str, module: QuantizedModule, state: State4, read: Read) -> Weight:
    """The matrix [N, K]: codes as stored, or dense in the state's dtype where blocks cross rows.

    Raises CheckpointError when a scale or a value of the table is not finite, or weights exceed
    the type that the tool rounds them to.
    """
    import torch

    from ....kernels.formats.compact import CodedScales
    from ....kernels.formats.stored import HIGH_FIRST, StoredLinear

    n, k = state.shape
    absmax, nested = _absmax(where, module.parts, state, read)
    stored = module.parts["weight.quant_map"]
    table = finite(where, stored.name, read(stored))
    most = float(table.abs().max() * absmax.abs().max())
    if most > torch.finfo(getattr(torch, state.dtype)).max:
        raise CheckpointError(
            f"{where}: {module.module}.weight has values up to {most:g}, which {state.dtype}, the "
            f"type that its quant_state names, does not hold; expected scales of such weights",
            hint="the file is damaged: download it again",
        )
    packed = read(module.parts["weight"]).reshape(-1).view(torch.uint8)
    if state.dense:
        return _dense(packed, table, absmax, state)
    scales, again = absmax, state.blocksize // state.group
    if again > 1:
        scales = absmax.repeat_interleave(again)[: n * k // state.group]
    compact = None
    if nested is not None:
        codes = nested.codes.flatten().repeat_interleave(again)[: len(scales)]
        factors, offset = nested.outer[:, 0], state.nested_offset
        run = state.nested_blocksize * again
        compact = CodedScales.of_blocks(codes, factors, offset, nested.table, run, n)
    form = replace(state.form, table=tuple(table.tolist()))
    name, rows = f"{module.module}.weight", packed.view(n, k // 2)
    swap = partial(_low_first, rows)
    return StoredLinear.of_codes(
        name, form, (n, k), HIGH_FIRST, rows, scales.view(n, -1), None, swap, compact=compact
    )


def _low_first(packed: Tensor) -> Tensor:
    """Bytes whose first code is in the high half, with it in the low half."""
    codes = packed >> 4
    codes |= packed << 4
    return codes


def _absmax(
    where: str, parts: Mapping[str, StoredTensor], state: State4, read: Read
) -> tuple[Tensor, CodedScales | None]:
    """One scale for each block, float32 [blocks], and what they are by double quantization.

    All are in memory of their own; of the latter the blocks are one row.
    """
    from ....kernels.formats.compact import CodedScales

    stored = parts["weight.absmax"]
    if not state.nested_blocksize:
        return finite(where, stored.name, read(stored)).clone(), None
    nested, table = parts["weight.nested_absmax"], parts["weight.nested_quant_map"]
    outer = finite(where, nested.name, read(nested))
    values = finite(where, table.name, read(table)).clone()
    run, offset, codes = state.nested_blocksize, state.nested_offset, read(stored).clone()
    found = CodedScales.of_blocks(codes, outer, offset, values, run, 1)
    return finite(where, stored.name, found.numbers()[0].flatten()), found


def _dense(packed: Tensor, table: Tensor, absmax: Tensor, state: State4) -> Tensor:
    """Weights [N, K] rounded to the state's dtype, as the tool's own kernels return them."""
    import torch

    total = math.prod(state.shape)
    flat = torch.empty(total, dtype=getattr(torch, state.dtype))
    for start in range(0, total, _CHUNK):
        stop = min(total, start + _CHUNK)
        pairs = packed[start // 2 : -(-stop // 2)]
        codes = torch.stack((pairs >> 4, pairs & 15), dim=-1).view(-1)[: stop - start]
        scales = absmax[start // state.blocksize : -(-stop // state.blocksize)]
        spread = scales.repeat_interleave(state.blocksize)[: stop - start]
        flat[start:stop] = table[codes.int()] * spread
    return flat.view(state.shape)
