"""Checks of stored tensors that several methods share: dtype, shape, finite values."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from halfbyte.errors import CheckpointError

from ..safetensors_index import StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = ("F32", "F16", "BF16")


def expect(
    where: str, tensor: StoredTensor, dtypes: Collection[str], *shapes: tuple[int, ...]
) -> StoredTensor:
    """The tensor, if its header names one of the dtypes and one of the shapes.

    Raises CheckpointError naming the folder (``where``), the tensor, found and expected.
    """
    if tensor.dtype not in dtypes or tensor.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise CheckpointError(
            f"{where}: tensor {tensor.name} is {tensor.dtype} {list(tensor.shape)}; expected "
            f"{' or '.join(dtypes)} {wanted}",
            hint="the file is damaged, or the config belongs to another model",
        )
    return tensor


def finite(where: str, name: str, values: Tensor) -> Tensor:
    """The values, of any shape, as float32.

    Raises CheckpointError naming the tensor when one is NaN or infinite.
    """
    import torch

    found = values.to(torch.float32)
    bad = ~torch.isfinite(found)
    if bool(bad.any()):
        at = int(bad.flatten().nonzero()[0, 0])
        raise CheckpointError(
            f"{where}: tensor {name} holds {float(found.flatten()[at])} at element {at}; "
            "expected finite numbers",
            hint="the file is damaged: download it again",
        )
    return found


def missing(where: str, module: str, names: Collection[str], method: str) -> CheckpointError:
    """The error for parts of a quantized module that are not stored."""
    listed = ", ".join(f"{module}.{name}" for name in list(names)[:10])
    return CheckpointError(
        f"{where}: {listed} {'is' if len(names) == 1 else 'are'} missing; {method} needs "
        f"{'it' if len(names) == 1 else 'them'} to read {module}.weight",
        hint="the download is incomplete: repeat it",
    )
