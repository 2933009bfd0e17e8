"""Scales, zero points and input rules that int8, FP8 and packed weights have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from halfbyte.errors import CheckpointError

from ....kernels.formats.weight_format import ActivationFormat, WeightFormat, ZeroKind
from ...files.safetensors_index import StoredTensor
from ...model.report import LoadReport
from .base import QuantizedModule, Read
from .checks import FLOAT_NAMES, check_dtype, finite, missing, wrong_shape
from .ct_scheme import InputScheme, TensorScheme, WeightScheme

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 1 << 22  # codes that are looked at together
_INTS = ("I8", "I32", "I64")
# Tensors of attention in FP8 or int8 and of its quantized KV cache, within ``self_attn``: scales
# and zero points of queries, keys, values and probabilities.
_ATTENTION_SCALES = re.compile(
    r"(?:\w+\.)?(?:q|k|v|kv|prob|prob_output)_(?:scale|zero_point)"
    r"|(?:q|k|v|qkv)_proj\.output_(?:scale|zero_point)"
)


def stored_weights(
    where: str, scheme: WeightScheme, shape: tuple[int, int], scale: StoredTensor
) -> WeightScheme:
    """The scheme with the strategy that the scales' shape shows.

    One scale can only be the tensor's, and one column of N scales can only be the rows'; more
    columns must be those of the config's groups or blocks. Raises CheckpointError otherwise.
    """
    n, k = shape
    check_dtype(where, scale, FLOAT_NAMES)
    if scale.shape in ((), (1,), (1, 1)) and scheme.strategy != "block":
        # A group as wide as the row is no tensor of one row: keep what the config says.
        fits = n == 1 and scheme.strategy in ("channel", "group")
        return scheme if fits else _as(scheme, "tensor")
    if scheme.strategy == "block":
        rows, columns = scheme.block
        expected = (-(-n // rows), -(-k // columns))
    elif scheme.strategy == "group":
        if k > scheme.group_size and k % scheme.group_size:
            raise CheckpointError(
                f"{where}: {scale.name}: groups of {scheme.group_size} do not divide K = {k}; "
                "expected whole groups",
                hint="the tool that defines this format refuses such weights, too",
            )
        expected = (n, -(-k // scheme.group_size))
    else:
        expected = (n, 1)
    if scale.shape == expected or (scale.shape == (n,) and expected == (n, 1)):
        return scheme if scheme.strategy != "tensor" else _as(scheme, "channel")
    if scale.shape == (n, 1) and scheme.strategy != "block":
        return _as(scheme, "channel")
    raise wrong_shape(where, scale, f"{list(expected)} ({scheme.label}) for a weight {[n, k]}")


def _as(scheme: WeightScheme, strategy: str) -> WeightScheme:
    kind, bits, symmetric = scheme.kind, scheme.bits, scheme.symmetric
    if strategy == scheme.strategy:
        return scheme
    return WeightScheme(
        bits, kind, symmetric, "tensor" if strategy == "tensor" else "channel", 0, (0, 0), False
    )


def checked_module(
    where: str,
    module: str,
    shape: tuple[int, int],
    scheme: TensorScheme,
    seen: WeightScheme,
    parts: dict[str, StoredTensor],
    stored: Mapping[str, StoredTensor],
    report: LoadReport,
) -> QuantizedModule:
    """A module whose weight's ``parts`` are checked; its inputs are here, and added to them.

    Args:
        where: folder, for messages.
        module: full name.
        shape: (N, K).
        scheme: what the config says.
        seen: the weights' scheme, with the strategy that the scales show.
        parts: the weight's tensors by suffix.
        stored: all tensors.
        report: gets warnings.

    Raises CheckpointError for static input scales that are missing or of the wrong shape or dtype.
    """
    _check_inputs(where, module, scheme, parts, stored, report)
    if scheme.weights is not None and scheme.weights.strategy != seen.strategy:
        report.decide(
            f"group {scheme.name}: scales are per {seen.strategy} where the config says "
            f"{scheme.weights.strategy}; the tensors are followed"
        )
    label = seen.label
    if scheme.inputs is not None:
        label = f"{label}, inputs {scheme.inputs.label}"
    form = form_of(scheme, seen, shape[1], "weight_zero_point" in parts)
    dtype = next(p.dtype for name, p in parts.items() if name.startswith("weight_scale"))
    return QuantizedModule(module, shape, label, parts, form, dtype=dtype, half=dtype != "F32")


def row_chunks(matrix: Tensor, columns: int) -> Sequence[Tensor]:
    """Views of rows of a matrix [N, X], so many that their ``columns`` codes each stay small."""
    return matrix.split(max(1, _CHUNK // columns))


def group_size(scheme: WeightScheme, k: int) -> int:
    """Columns that share a canonical scale: -1 where one serves the whole row."""
    size = scheme.block[1] if scheme.strategy == "block" else scheme.group_size
    return size if size and (size < k or (size == k and scheme.strategy == "group")) else -1


def form_of(scheme: TensorScheme, seen: WeightScheme, k: int, zeros: bool) -> WeightFormat:
    """The canonical format of weights [N, K], but for column order and static input scales.

    Args:
        scheme: what the config says.
        seen: the weights' scheme, with the strategy that the scales show.
        k: K.
        zeros: zero points are stored.
    """
    zero: ZeroKind = "e4m3" if seen.kind == "float" else "none"
    if zeros and not seen.symmetric and zero == "none":
        zero = "int"
    inputs, act = scheme.inputs, None
    if inputs is not None:
        kind = "e4m3" if inputs.kind == "float" else "int8"
        act = ActivationFormat(kind, inputs.symmetric, inputs.top, None if inputs.dynamic else 0.0)
    return WeightFormat(seen.bits, group_size(seen, k), zero, act=act)


def read_scales(
    where: str, scheme: WeightScheme, shape: tuple[int, int], tensor: StoredTensor, read: Read
) -> Tensor:
    """Scales [N, G] of every row, in the file's dtype. Raises CheckpointError unless finite."""
    return per_row(scheme, shape, finite(where, tensor.name, read(tensor)))


def per_row(scheme: WeightScheme, shape: tuple[int, int], values: Tensor) -> Tensor:
    """[1], [N], [N, G] or blocks [N / rows, G] to [N, G] in memory of its own."""
    n = shape[0]
    if scheme.strategy == "block":
        return values.repeat_interleave(scheme.block[0], dim=0)[:n].contiguous()
    if scheme.strategy == "tensor":
        return values.reshape(1, 1).repeat(n, 1)
    return values.reshape(n, -1).clone()


def _check_inputs(
    where: str,
    module: str,
    scheme: TensorScheme,
    parts: dict[str, StoredTensor],
    stored: Mapping[str, StoredTensor],
    report: LoadReport,
) -> None:
    """Find and check the tensors of static input scales, and add them to ``parts``.

    Raises CheckpointError when they are missing or of the wrong shape or dtype.
    """
    found = {
        suffix: stored[f"{module}.{suffix}"]
        for suffix in ("input_scale", "input_zero_point")
        if f"{module}.{suffix}" in stored
    }
    parts.update(found)
    inputs = scheme.inputs
    if inputs is None or inputs.dynamic:
        if found:
            how = "dynamic" if inputs else "not quantized"
            report.warn(f"stored input scales are not used: the config says inputs are {how}")
        return
    if "input_scale" not in found:
        raise missing(
            where, module, ["input_scale"], f"group {scheme.name} has static input scales"
        )
    if not inputs.symmetric and "input_zero_point" not in found:
        raise missing(
            where, module, ["input_zero_point"], f"inputs of group {scheme.name} are asymmetric"
        )
    for suffix, tensor in found.items():
        check_dtype(where, tensor, FLOAT_NAMES if suffix == "input_scale" else (*_INTS, "F8_E4M3"))
        if tensor.shape not in ((), (1,), (1, 1)):
            raise wrong_shape(where, tensor, "one value for the whole tensor")


def activation(
    where: str, inputs: InputScheme | None, module: QuantizedModule, read: Read
) -> ActivationFormat | None:
    """The canonical rule of a module's inputs. Raises CheckpointError for impossible values."""
    if inputs is None:
        return None
    kind = "e4m3" if inputs.kind == "float" else "int8"
    if inputs.dynamic:
        return ActivationFormat(kind, inputs.symmetric, inputs.top)
    tensor = module.parts["input_scale"]
    scale = float(finite(where, tensor.name, read(tensor)).float().item())
    if scale <= 0:
        raise CheckpointError(
            f"{where}: tensor {tensor.name} holds {scale}; expected a positive scale"
        )
    zero = 0
    if "input_zero_point" in module.parts:
        tensor = module.parts["input_zero_point"]
        zero = int(read(tensor).float().item())
        if not -128 <= zero <= 127 or (inputs.symmetric and zero):
            expected = "0: the config says symmetric" if inputs.symmetric else "-128 to 127"
            raise CheckpointError(
                f"{where}: tensor {tensor.name} holds {zero}; expected {expected}"
            )
    return ActivationFormat(kind, inputs.symmetric, inputs.top, scale, zero)


def with_kv_scales(
    found: list[QuantizedModule], stored: Mapping[str, StoredTensor], report: LoadReport
) -> list[QuantizedModule]:
    """The modules, some of which take the scales of quantized attention as ignored parts.

    Attention and its cache keep 16 or 32 bits, which is more accurate. Where a layer's attention
    is not quantized, its ``k_proj`` (or ``qkv_proj``) is added as a dense module that owns them.
    """
    extra: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        layer, attention, ending = name.partition(".self_attn.")
        if attention and _ATTENTION_SCALES.fullmatch(ending):
            extra.setdefault(layer + attention, {})[ending] = tensor
    if not extra:
        return found
    kinds = sorted({ending for scales in extra.values() for ending in scales})
    report.decide(
        "attention and KV cache stay in 16 or 32 bits: the stored FP8 or int8 scales "
        f"({', '.join(kinds)}) are not used, which is more accurate"
    )
    result: list[QuantizedModule] = []
    for module in found:
        layer, attention, _ = module.module.partition(".self_attn.")
        scales = extra.pop(layer + attention, {}) if attention else {}
        result.append(_with_parts(module, scales))
    for prefix, scales in extra.items():
        names = (f"{prefix}{name}" for name in ("k_proj", "qkv_proj"))
        owner = next((name for name in names if f"{name}.weight" in stored), None)
        if owner is not None:
            weight = stored[f"{owner}.weight"]
            if len(weight.shape) == 2:
                shape = (weight.shape[0], weight.shape[1])
                parts, dtype = {"weight": weight, **scales}, weight.dtype
                result.append(QuantizedModule(owner, shape, dtype, parts, dtype=dtype))
    return result


def _with_parts(module: QuantizedModule, more: Mapping[str, StoredTensor]) -> QuantizedModule:
    parts = {**module.parts, **more}
    return replace(module, parts=parts)
