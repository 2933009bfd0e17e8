"""Checks of stored tensors that methods have in common: parts, dtypes, shapes, finite values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from halfbyte.errors import CheckpointError

from ...files.safetensors_index import StoredTensor
from .base import FolderTensors

if TYPE_CHECKING:
    from torch import Tensor

FLOAT_NAMES = ("F16", "BF16", "F32")
_OTHER_MODEL = "the config and the weights belong to different models, or the file is damaged"


def gather(
    where: str,
    tensors: FolderTensors,
    required: Iterable[str],
    optional: Iterable[str] = (),
) -> dict[str, dict[str, StoredTensor]]:
    """Module -> its parts by suffix, for every module with a matrix that has one of them.

    A part ``bias`` is one that the model does not have and that is zero throughout, as AutoGPTQ
    writes them. Any other bias that the model does not have is left to the comparison of stored
    and expected tensors, which refuses it.

    Args:
        where: folder or file, for messages.
        tensors: what is stored, and what the config implies.
        required: suffixes that a quantized module must have; the first one marks it.
        optional: suffixes that it may have.

    Raises:
        CheckpointError: a part is missing, or the module has a plain weight, too.
    """
    required, stored, shapes = tuple(required), tensors.stored, tensors.shapes
    found: dict[str, dict[str, StoredTensor]] = {}
    for tensor in stored.values():
        module, _, suffix = tensor.name.rpartition(".")
        if suffix in (*required, *optional) and len(shapes.get(f"{module}.weight", ())) == 2:
            found.setdefault(module, {})[suffix] = tensor
    for module, parts in found.items():
        missing = [suffix for suffix in required if suffix not in parts]
        if missing:
            raise CheckpointError(
                f"{where}: {module} has {', '.join(parts)} but no {', '.join(missing)}",
                hint="the download is incomplete, or the file was written by a broken tool",
            )
        if f"{module}.weight" in stored:
            raise CheckpointError(
                f"{where}: {module} is stored twice, as weight and as {required[0]}"
            )
    for module, parts in found.items():
        bias = stored.get(f"{module}.bias")
        if bias is None or bias.name in shapes or bias.dtype not in FLOAT_NAMES:
            continue
        if not bool(tensors.read(bias).any()):
            parts["bias"] = bias
    return found


def check_dtype(where: str, tensor: StoredTensor, expected: Iterable[str]) -> None:
    """Raise CheckpointError when the tensor's dtype is none of the expected ones."""
    expected = tuple(expected)
    if tensor.dtype not in expected:
        raise CheckpointError(
            f"{where}: tensor {tensor.name} is {tensor.dtype}; expected {' or '.join(expected)}"
        )


def check_shape(where: str, tensor: StoredTensor, expected: tuple[int, ...], why: str) -> None:
    """Raise CheckpointError when the tensor's shape is not the expected one.

    ``why`` says what the expectation follows from, such as ``3 groups of 128``.
    """
    if tensor.shape != expected:
        raise wrong_shape(where, tensor, f"{list(expected)} ({why})")


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
            hint=_OTHER_MODEL,
        )
    return tensor


def wrong_shape(where: str, tensor: StoredTensor, expected: str) -> CheckpointError:
    """The error for a tensor of a shape that does not fit the others."""
    return CheckpointError(
        f"{where}: tensor {tensor.name} is {list(tensor.shape)}; expected {expected}",
        hint=_OTHER_MODEL,
    )


def missing(where: str, module: str, suffixes: Sequence[str], why: str) -> CheckpointError:
    """The error for parts of a quantized module that must be there."""
    listed = ", ".join(f"{module}.{suffix}" for suffix in suffixes[:10])
    one = len(suffixes) == 1
    return CheckpointError(
        f"{where}: tensor{'' if one else 's'} {listed} {'is' if one else 'are'} missing; {why}",
        hint="the download is incomplete, or the config belongs to another model",
    )


def finite(where: str, name: str, values: Tensor) -> Tensor:
    """The values, of any shape and dtype.

    Raises CheckpointError naming the tensor when one is NaN or infinite.
    """
    good = values.isfinite()
    if not bool(good.all()):
        at = int((~good).flatten().nonzero()[0, 0])
        raise CheckpointError(
            f"{where}: tensor {name} holds {float(values.flatten()[at])} at element {at}; "
            "expected finite numbers",
            hint="the file is damaged: download it again",
        )
    return values
