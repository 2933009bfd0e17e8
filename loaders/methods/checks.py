"""Checks that methods with several tensors a module have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from halfbyte.errors import CheckpointError

from ..safetensors_index import StoredTensor
from .base import Read

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = ("F16", "BF16", "F32")


def gather(
    where: str,
    stored: Mapping[str, StoredTensor],
    shapes: Mapping[str, tuple[int, ...]],
    required: Iterable[str],
    optional: Iterable[str] = (),
) -> dict[str, dict[str, StoredTensor]]:
    """Module -> its parts by suffix, for every module with a matrix that has one of them.

    Args:
        where: folder or file, for messages.
        stored: name -> header of everything in the files.
        shapes: ``P.weight`` -> shape that the config implies.
        required: suffixes that a quantized module must have; the first one marks it.
        optional: suffixes that it may have.

    Raises:
        CheckpointError: a part is missing, or the module has a plain weight, too.
    """
    required = tuple(required)
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
    return found


def check_dtype(where: str, tensor: StoredTensor, expected: tuple[str, ...]) -> None:
    """Raise CheckpointError when the tensor's dtype is none of the expected ones."""
    if tensor.dtype not in expected:
        raise CheckpointError(
            f"{where}: tensor {tensor.name} has dtype {tensor.dtype}; expected "
            f"{' or '.join(expected)}"
        )


def check_shape(where: str, tensor: StoredTensor, expected: tuple[int, ...], why: str) -> None:
    """Raise CheckpointError when the tensor's shape is not the expected one.

    ``why`` says what the expectation follows from, such as ``3 groups of 128``.
    """
    if tensor.shape != expected:
        raise CheckpointError(
            f"{where}: tensor {tensor.name} is {list(tensor.shape)}; expected {list(expected)} "
            f"({why})"
        )


def check_finite(where: str, name: str, values: Tensor) -> Tensor:
    """The tensor, [any shape]; CheckpointError naming it when a value is NaN or infinite."""
    finite = values.isfinite()
    if not bool(finite.all()):
        bad = int((~finite).sum())
        first = (~finite).nonzero()[0].tolist()
        raise CheckpointError(
            f"{where}: tensor {name} has {bad} values that are not finite, the first at {first}; "
            "expected finite numbers",
            hint="the file is damaged: download it again",
        )
    return values


def zero_biases(
    stored: Mapping[str, StoredTensor],
    shapes: Mapping[str, tuple[int, ...]],
    modules: Iterable[str],
    read: Read,
) -> dict[str, StoredTensor]:
    """Module -> bias that the model does not have and that is zero throughout.

    AutoGPTQ writes such biases. Any other bias that the model does not have is left to the
    comparison of stored and expected tensors, which refuses it.
    """
    found = {}
    for module in modules:
        name = f"{module}.bias"
        bias = stored.get(name)
        if bias is None or name in shapes or bias.dtype not in FLOATS:
            continue
        if not bool(read(bias).any()):
            found[module] = bias
    return found
