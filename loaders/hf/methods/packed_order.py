"""Act-order of packed weights: columns whose groups are listed one by one in ``g_idx``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from halfbyte.errors import CheckpointError

from ...files.safetensors_index import StoredTensor
from .base import Read

if TYPE_CHECKING:
    from torch import Tensor

    from ....kernels.formats.canonical import QuantizedLinear

_CHUNK = 1 << 22  # elements that are dequantized together


@dataclass(frozen=True, slots=True)
class ColumnOrder:
    """How columns belong to groups when they do not in their own order.

    Attributes:
        group_of: int64 [K], the group of each column.
        perm: int64 [K], the columns sorted by group; None when groups differ in size, so that no
            order makes them regular.
    """

    group_of: Tensor
    perm: Tensor | None


def column_order(
    where: str, tensor: StoredTensor, linear: QuantizedLinear, read: Read
) -> ColumnOrder | None:
    """What ``weight_g_idx`` says of a weight [N, K]; None when columns are in order.

    -1 everywhere means that nothing was set. Raises CheckpointError for groups that do not exist.
    """
    import torch

    group_of, k = read(tensor).long(), linear.in_features
    groups = linear.scales.shape[1]
    low, high = int(group_of.min()), int(group_of.max())
    if low == high == -1:
        return None
    if low < 0 or high >= groups:
        raise CheckpointError(
            f"{where}: tensor {tensor.name} holds {low if low < 0 else high}; expected groups "
            f"from 0 to {groups - 1}"
        )
    regular, permuted = spread(group_of, linear.format.group_size, k)
    if not permuted:
        return None
    return ColumnOrder(group_of, torch.sort(group_of, stable=True)[1] if regular else None)


def spread(group_of: Tensor, group: int, k: int) -> tuple[bool, bool]:
    """(groups have equal sizes, columns must be sorted by them) of the groups int64 [K]."""
    import torch

    runs = torch.arange(k) // (k if group == -1 else group)
    if torch.equal(group_of, runs) or bool((group_of == -1).all()):
        return True, False
    return torch.equal(group_of.sort()[0], runs), True


def densely(linear: QuantizedLinear, group_of: Tensor) -> Tensor:
    """Float32 [N, K] of a weight whose columns have the groups int64 [K], in chunks of rows."""
    import torch

    k, parts = linear.in_features, []
    half = float(1 << (linear.format.bits - 1))
    step = max(1, _CHUNK // k)
    for start in range(0, linear.shape[0], step):
        part = linear.rows(start, start + step)
        middle = half if part.zeros is None else part.zeros.float()[:, group_of]
        parts.append((part.unpack().float() - middle) * part.scales.float()[:, group_of])
    return torch.cat(parts)
