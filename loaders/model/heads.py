"""Whether the LM head is the embedding matrix: the stored tensors decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Bytes compared at a time; different matrices differ within the first of them.
_CHUNK = 1 << 22


def same_matrix(head: Tensor, embedding: Tensor) -> bool:
    """Whether two stored matrices [V, D] are equal, in bytes or, of float dtypes, in values.

    Quantized ones in blocks are uint8 [V, bytes of a row].
    """
    import torch

    if head.shape != embedding.shape:
        return False
    plain = head.dtype == embedding.dtype
    if not plain and not (head.is_floating_point() and embedding.is_floating_point()):
        return False
    rows = max(1, _CHUNK // max(1, head.stride(0) * head.element_size()))
    for one, other in zip(head.split(rows), embedding.split(rows), strict=True):
        if plain and not torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
            return False
        if not plain and not torch.equal(one.float(), other.float()):
            return False
    return True
