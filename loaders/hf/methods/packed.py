"""Weight-only integers of compressed-tensors' ``pack-quantized``: bit fields in int32 words.

Codes are stored with an offset of half their range, so the stored field is the canonical code.
Words are little-endian and the first field is in the lowest bits: with 2, 4 and 8 bits, and today
with all others, the bytes of a row *are* the canonical stream. Older writers of 3, 5, 6 and 7 bits
left the bits over at the top of each word unused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ...files.safetensors_index import StoredTensor
from ...model.report import LoadReport
from .base import FolderTensors, QuantizedModule, Read
from .checks import check_dtype, missing, wrong_shape
from .ct_scheme import TensorScheme, WeightScheme
from .scaled import offset_zeros
from .scales import (
    activation,
    checked_module,
    form_of,
    per_row,
    read_scales,
    row_chunks,
    stored_weights,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ....kernels.formats.canonical import Weight


@dataclass(frozen=True, slots=True)
class _ColumnOrder:
    """How columns belong to groups when they do not in their own order.

    Attributes:
        group_of: int64 [K], the group of each column.
        perm: int64 [K], the columns sorted by group; None when groups differ in size, so that no
            order makes them regular.
    """

    group_of: Tensor
    perm: Tensor | None


def find_packed(
    where: str,
    module: str,
    shape: tuple[int, int],
    scheme: TensorScheme,
    tensors: FolderTensors,
    report: LoadReport,
) -> tuple[QuantizedModule, WeightScheme]:
    """A module with ``weight_packed``, checked from headers and its ``weight_shape``.

    Args:
        where: folder, for messages.
        module: full name.
        shape: (N, K) that the model expects.
        scheme: what the config says of it.
        tensors: all tensors; ``weight_shape`` and ``weight_g_idx`` are read.
        report: gets warnings.

    Returns:
        The module, and the weights' scheme with the strategy that the scales show.

    Raises:
        CheckpointError: tensors are missing, of the wrong shape or dtype.
        UnsupportedModelError: scales of blocks.
    """
    stored, read = tensors.stored, tensors.read
    packed, weights = stored[f"{module}.weight_packed"], scheme.weights
    if weights is None or weights.kind != "int":
        kind = "no" if weights is None else weights.kind
        raise CheckpointError(
            f"{where}: tensor {packed.name} holds packed integers, but group {scheme.name} of the "
            f"config says {kind} weights"
        )
    if weights.strategy == "block":
        raise UnsupportedModelError(
            f"{where}: tensor {packed.name}: packed integers with scales of blocks; supported are "
            "scales of the tensor, of rows and of groups"
        )
    check_dtype(where, packed, ("I32",))
    n, k = shape
    widths = {words(k, weights.bits, dense) for dense in (True, False)}
    if packed.shape not in {(n, width) for width in widths}:
        expected = " or ".join(str([n, width]) for width in sorted(widths))
        raise wrong_shape(where, packed, f"{expected} for {weights.bits}-bit {list(shape)}")
    parts = {"weight_packed": packed}
    _check_shape(where, module, shape, parts, stored, read)
    scale = stored.get(f"{module}.weight_scale")
    if scale is None:
        raise missing(where, module, ["weight_scale"], "the weight is packed")
    parts["weight_scale"] = scale
    seen = stored_weights(where, weights, shape, scale)
    _check_zeros(where, module, shape, seen, parts, stored)
    order = stored.get(f"{module}.weight_g_idx")
    if order is not None:
        parts["weight_g_idx"] = order
        check_dtype(where, order, ("I32", "I64"))
        if order.shape != (k,):
            raise wrong_shape(where, order, f"{[k]}")
    elif weights.act_order and seen.strategy == "group" and weights.group_size < k:
        raise missing(
            where, module, ["weight_g_idx"], f"group {scheme.name} has actorder by groups"
        )
    item = checked_module(where, module, shape, scheme, seen, parts, stored, report)
    form = item.format
    if order is not None and form is not None:
        # Columns that are spread unevenly are held dense; a list that is damaged is refused when
        # the weight is loaded.
        regular, permuted = _spread(read(order).long(), form.group_size, k)
        form = replace(form, permuted=permuted) if regular else None
    if form is None:
        item = replace(item, dtype="F32", half=False)
    return replace(item, format=form, checks=_checks(parts, k, seen.bits)), seen


def _checks(parts: Mapping[str, StoredTensor], k: int, bits: int) -> tuple[str, ...]:
    """What the headers and ``weight_shape`` show, for the report."""
    found = ["weight_shape is that of the config"]
    dense, spaced = words(k, bits, True), words(k, bits, False)
    if dense != spaced:
        new = parts["weight_packed"].shape[1] == dense
        found.append("fields cross words" if new else "whole fields in each word (older layout)")
    if "weight_g_idx" in parts:
        found.append("groups of columns are listed (act-order)")
    return tuple(found)


def load_packed(
    where: str,
    module: QuantizedModule,
    scheme: TensorScheme,
    seen: WeightScheme,
    read: Read,
    report: LoadReport,
) -> Weight:
    """The weight [N, K]; dense float32 when columns are spread over groups unevenly.

    Raises CheckpointError for scales that are not finite, zero points that contradict the config,
    and groups of columns that do not exist.
    """
    import torch

    from ....kernels.formats.canonical import QuantizedLinear
    from ....kernels.formats.stored import STREAM, StoredLinear
    from .words import dense as dense_weight

    tensor, k = module.parts["weight_packed"], module.shape[1]
    scales = read_scales(where, seen, module.shape, module.parts["weight_scale"], read)
    raw = read(tensor)
    dense = _is_dense(raw, k, seen.bits)
    zeros = _zeros(where, module, seen, dense, read)
    form = form_of(scheme, seen, k, zeros is not None)
    form = replace(form, act=activation(where, scheme.inputs, module, read))
    name = f"{module.module}.weight"
    order = None
    if "weight_g_idx" in module.parts:
        order = _column_order(where, module, form.group_size, scales.shape[1], read)
    perm = None if order is None else order.perm
    codes = partial(_codes, raw, k, seen.bits, dense, perm)
    if order is not None and order.perm is None:
        if form.act is not None:
            raise CheckpointError(
                f"{where}: {module.module}: columns are spread unevenly over groups, and inputs "
                "are quantized; expected groups of equal size"
            )
        report.decide(
            f"{module.module}: act-order with groups of unequal size; held as dense float32"
        )
        return dense_weight(codes(), seen.bits, scales, zeros, order.group_of)
    if perm is not None:
        form, perm = replace(form, permuted=True), perm.to(torch.int32)
    if not dense:
        return QuantizedLinear(name, form, codes(), scales, zeros, k, perm)
    shape, stream = module.shape, _bytes(raw)
    return StoredLinear.of_codes(name, form, shape, STREAM, stream, scales, zeros, codes, perm)


def words(count: int, bits: int, dense: bool) -> int:
    """int32 words that hold ``count`` fields."""
    return -(-count * bits // 32) if dense else -(-count // (32 // bits))


def fields(raw: Tensor, count: int, bits: int, dense: bool) -> Tensor:
    """Packed int32 [R, W] to the canonical stream, uint8 [R, ceil(count * bits / 8)]."""
    import torch

    from ....kernels.formats.canonical import pack_codes

    nbytes = -(-count * bits // 8)
    if dense:
        stream = _bytes(raw)[:, :nbytes].clone()
        if count * bits % 8:
            stream[:, -1] &= (1 << count * bits % 8) - 1
        return stream
    shifts = torch.arange(0, 32 - bits + 1, bits, dtype=torch.int32)
    parts = [
        pack_codes(
            ((part.unsqueeze(-1) >> shifts) & ((1 << bits) - 1))
            .to(torch.uint8)
            .view(part.shape[0], -1)[:, :count]
            .contiguous(),
            bits,
        )
        for part in row_chunks(raw, count)
    ]
    return torch.cat(parts)


def _codes(raw: Tensor, k: int, bits: int, dense: bool, order: Tensor | None) -> Tensor:
    """Packed int32 [N, W] to the canonical stream [N, ceil(K * bits / 8)], columns in ``order``."""
    from .words import reorder

    codes = fields(raw, k, bits, dense)
    if order is not None:
        reorder(codes, bits, order)
    return codes


def _bytes(raw: Tensor) -> Tensor:
    """int32 [R, W] as uint8 [R, 4 W]."""
    import torch

    # Flat first: one column has any stride, and bytes of a strided row are no bytes.
    return raw.reshape(-1).view(torch.uint8).view(raw.shape[0], -1)


def _is_dense(raw: Tensor, k: int, bits: int) -> bool:
    """Whether fields of int32 [N, W] cross words (today) or leave the top bits unused (before).

    The width decides; short rows may have the same width either way, and then unused bits that
    are all 0 tell the older layout.
    """
    if 32 % bits == 0:
        return True
    dense, spaced = words(k, bits, True), words(k, bits, False)
    if dense != spaced:
        return raw.shape[1] == dense
    used = 32 // bits * bits
    return bool(((raw >> used) != 0).any())


def _check_shape(
    where: str,
    module: str,
    shape: tuple[int, int],
    parts: dict[str, StoredTensor],
    stored: Mapping[str, StoredTensor],
    read: Read,
) -> None:
    """Compare ``weight_shape`` with the shape that the model expects."""
    tensor = stored.get(f"{module}.weight_shape")
    if tensor is None:
        raise missing(where, module, ["weight_shape"], "the weight is packed")
    parts["weight_shape"] = tensor
    check_dtype(where, tensor, ("I64", "I32"))
    if tensor.shape != (2,):
        raise wrong_shape(where, tensor, "two numbers")
    said = read(tensor).tolist()
    if said != list(shape):
        raise CheckpointError(
            f"{where}: tensor {tensor.name} holds {said}; expected {list(shape)} by the config",
            hint="the config and the weights belong to different models",
        )


def _check_zeros(
    where: str,
    module: str,
    shape: tuple[int, int],
    seen: WeightScheme,
    parts: dict[str, StoredTensor],
    stored: Mapping[str, StoredTensor],
) -> None:
    """Find zero points: packed along N, or int8 like the scales as some writers have them."""
    zero = stored.get(f"{module}.weight_zero_point")
    if zero is None:
        if not seen.symmetric:
            raise missing(where, module, ["weight_zero_point"], "the config says asymmetric")
        return
    parts["weight_zero_point"] = zero
    check_dtype(where, zero, ("I32", "I8"))
    scale = parts["weight_scale"]
    columns = scale.shape[1] if len(scale.shape) == 2 else 1
    if zero.dtype == "I8":
        allowed = {scale.shape}
    else:
        allowed = {(words(shape[0], seen.bits, dense), columns) for dense in (True, False)}
    if zero.shape not in allowed:
        expected = " or ".join(str(list(one)) for one in sorted(allowed))
        raise wrong_shape(where, zero, f"{expected} for scales {list(scale.shape)}")


def _zeros(
    where: str, module: QuantizedModule, seen: WeightScheme, dense: bool, read: Read
) -> Tensor | None:
    """Zero points of offset codes, uint8 [N, G]; None when symmetric."""
    from ....kernels.formats.canonical import unpack_codes

    tensor = module.parts.get("weight_zero_point")
    if tensor is None:
        return None
    raw, n = read(tensor), module.shape[0]
    if tensor.dtype == "I8":
        values = per_row(seen, module.shape, raw.float())
        return offset_zeros(where, tensor.name, seen, values)
    if tensor.shape[0] != words(n, seen.bits, dense):
        raise wrong_shape(where, tensor, f"{words(n, seen.bits, dense)} rows, packed as the weight")
    stream = fields(raw.T.contiguous(), n, seen.bits, dense)
    zeros = unpack_codes(stream, seen.bits, n).T.contiguous()
    # Checked as signed numbers, as they are in the other form.
    half = 1 << (seen.bits - 1)
    return offset_zeros(where, tensor.name, seen, zeros.float() - half)


def _column_order(
    where: str, module: QuantizedModule, group: int, groups: int, read: Read
) -> _ColumnOrder | None:
    """What ``weight_g_idx`` says of a weight [N, K] in groups; None when columns are in order.

    -1 everywhere means that nothing was set. Raises CheckpointError for groups that do not exist.
    """
    import torch

    tensor, k = module.parts["weight_g_idx"], module.shape[1]
    group_of = read(tensor).long()
    low, high = int(group_of.min()), int(group_of.max())
    if low == high == -1:
        return None
    if low < 0 or high >= groups:
        raise CheckpointError(
            f"{where}: tensor {tensor.name} holds {low if low < 0 else high}; expected groups "
            f"from 0 to {groups - 1}"
        )
    regular, permuted = _spread(group_of, group, k)
    if not permuted:
        return None
    return _ColumnOrder(group_of, torch.sort(group_of, stable=True)[1] if regular else None)


def _spread(group_of: Tensor, group: int, k: int) -> tuple[bool, bool]:
    """(groups have equal sizes, columns must be sorted by them) of the groups int64 [K]."""
    import torch

    runs = torch.arange(k) // (k if group == -1 else group)
    if torch.equal(group_of, runs) or bool((group_of == -1).all()):
        return True, False
    return torch.equal(group_of.sort()[0], runs), True
