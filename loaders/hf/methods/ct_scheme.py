"""Schemes of compressed-tensors configs: how weights and inputs of a group are quantized.

The other methods with scaled int8 or FP8 weights (``fp8``, ``modelopt``, ``quark``) put their
configs into the same words, so that one loader serves them all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from halfbyte.errors import UnsupportedModelError

from ...files.fields import Fields, shown
from ...model.report import LoadReport
from .fp4 import GROUPS

NumberKind = Literal["int", "float"]
Strategy = Literal["tensor", "channel", "group", "block"]

INPUTS_KEPT = (
    "inputs stay in 16 or 32 bits where the recipe rounds groups of columns of each token to 8: "
    "this is more accurate"
)
INPUTS_OVER_FP4 = (
    "inputs stay in 16 or 32 bits where the recipe rounds them to 4-bit floats: "
    "this is more accurate"
)
FP4_GROUPS = {"tensor_group": 16, "group": 32}
"""How scales of 4-bit floats are shared -> columns of a group: NVFP4, and MXFP4."""
_MAX_GROUP = 1 << 20
_KEYS = {"num_bits", "type", "symmetric", "group_size", "strategy", "block_structure", "dynamic"}
_KEYS |= {"actorder", "scale_dtype", "zp_dtype", "observer", "observer_kwargs"}


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """How the weights of a group are quantized.

    Attributes:
        bits: of one code.
        kind: ``int``, or ``float`` (e4m3; of 4 bits e2m1).
        symmetric: no zero points.
        strategy: what shares a scale: the tensor, a row, a group of columns, a block.
        group_size: columns of a group, or 0.
        block: (rows, columns) of a block, or (0, 0).
        act_order: columns belong to groups by ``weight_g_idx``.
    """

    bits: int
    kind: NumberKind
    symmetric: bool = True
    strategy: Strategy = "channel"
    group_size: int = 0
    block: tuple[int, int] = (0, 0)
    act_order: bool = False

    @property
    def fp4(self) -> bool:
        """Codes are floats of 4 bits, of which groups tell the format: see ``fp4.py``."""
        return self.kind == "float" and self.bits == 4

    @property
    def label(self) -> str:
        """Short form for people, such as ``4-bit g128 sym``."""
        if self.fp4:
            return GROUPS[self.group_size]
        unit: str = self.strategy
        if unit == "group":
            unit = f"g{self.group_size}"
        elif unit == "block":
            unit = f"{self.block[0]}x{self.block[1]}"
        code = "FP8" if self.kind == "float" else f"{self.bits}-bit"
        sign = "" if self.kind == "float" else " sym" if self.symmetric else " asym"
        return f"{code} {unit}{sign}{' act-order' if self.act_order else ''}"


@dataclass(frozen=True, slots=True)
class InputScheme:
    """How the inputs of a group are quantized, to 8 bits.

    Attributes:
        kind: ``int``, or ``float`` (e4m3).
        symmetric: no zero point.
        dynamic: one scale for each token, found at run time; else ``input_scale`` is stored.
        top: a dynamic symmetric scale is the largest magnitude over this.
    """

    kind: NumberKind
    symmetric: bool = True
    dynamic: bool = True
    top: float = 127.5

    @property
    def label(self) -> str:
        """Short form for people, such as ``int8 per token``."""
        code = "FP8" if self.kind == "float" else "int8" if self.symmetric else "int8 asym"
        return f"{code} {'per token' if self.dynamic else 'static'}"


@dataclass(frozen=True, slots=True)
class TensorScheme:
    """One group of a config.

    Attributes:
        name: the group's name.
        weights: None when the group leaves weights alone.
        inputs: None when inputs keep 16 or 32 bits.
        layout: the label of the stored form, such as ``pack-quantized``; empty when not given.
    """

    name: str
    weights: WeightScheme | None
    inputs: InputScheme | None = None
    layout: str = ""


def read_scheme(name: str, fields: Fields, layout: str, report: LoadReport) -> TensorScheme:
    """A group of ``config_groups``.

    Args:
        name: the group's name.
        fields: the group.
        layout: label of the whole config, where the group has none of its own.
        report: gets what is decided.

    Raises:
        CheckpointError: a value is damaged.
        UnsupportedModelError: a quantization that is not implemented, named.
    """
    if fields.mapping("output_activations"):
        raise UnsupportedModelError(
            f"{fields.name('output_activations')} is set: quantized outputs are not supported",
            hint="use a checkpoint that quantizes weights and inputs only",
        )
    unknown = sorted(
        key
        for key, value in fields.values.items()
        if value and key not in ("targets", "weights", "input_activations", "format")
    )
    if unknown:
        raise UnsupportedModelError(
            f"{fields.name(unknown[0])} is {shown(fields.values[unknown[0]])}: this key is not "
            "known, and may change the numbers"
        )
    weights = inputs = None
    if fields.mapping("weights"):
        weights = read_weights(_part(fields, "weights"))
    if fields.mapping("input_activations"):
        inputs = read_inputs(_part(fields, "input_activations"), report)
    if weights is None and inputs is not None:
        raise UnsupportedModelError(
            f"{fields.name('weights')} is null but inputs are quantized; that is not supported"
        )
    return TensorScheme(name, weights, inputs, fields.text("format", layout))


def read_weights(fields: Fields) -> WeightScheme:
    """QuantizationArgs of weights. Raises CheckpointError or UnsupportedModelError by key."""
    _check_keys(fields)
    kind, bits = _kind(fields), fields.integer("num_bits", 1, 64, 8)
    if bits not in (4, 8) if kind == "float" else not 2 <= bits <= 8:
        raise UnsupportedModelError(
            f"{fields.name('num_bits')} is {bits} for {kind} weights; supported are "
            f"{'4 and 8' if kind == 'float' else '2 to 8'}"
        )
    if fields.values.get("dynamic"):
        raise fields.error("dynamic", fields.values["dynamic"], "false for weights")
    size = fields.integer("group_size", -1, _MAX_GROUP, 0)
    strategy = _strategy(fields, size)
    if (kind, bits) == ("float", 4):
        return _fp4_weights(fields, strategy, size)
    if strategy not in ("tensor", "channel", "group", "block"):
        raise UnsupportedModelError(
            f"{fields.name('strategy')} is {shown(strategy)}; supported for weights are tensor, "
            "channel, group and block"
        )
    if strategy == "group" and size <= 0:
        raise fields.error("group_size", size, "a positive number for the strategy group")
    symmetric = fields.flag("symmetric", True)
    if kind == "float" and not symmetric:
        raise fields.error("symmetric", False, "true for float weights")
    order = fields.values.get("actorder")
    if order not in (None, False, True, "weight", "static", "group", "dynamic"):
        raise fields.error("actorder", order, "weight, static, group, dynamic, or null")
    return WeightScheme(
        bits,
        kind,
        symmetric,
        strategy,
        size if strategy == "group" else 0,
        _block(fields) if strategy == "block" else (0, 0),
        order in (True, "group", "dynamic"),
    )


def _fp4_weights(fields: Fields, strategy: str, size: int) -> WeightScheme:
    """NVFP4 or MXFP4. Raises UnsupportedModelError for other groups, and zero points."""
    if FP4_GROUPS.get(strategy) != size:
        raise UnsupportedModelError(
            f"{fields.name('strategy')} is {shown(strategy)} with group_size {size} for 4-bit "
            "floats; supported are tensor_group with 16 (NVFP4) and group with 32 (MXFP4)"
        )
    if not fields.flag("symmetric", True):
        raise fields.error("symmetric", False, "true for float weights")
    return WeightScheme(4, "float", strategy="group", group_size=size)


def read_inputs(fields: Fields, report: LoadReport) -> InputScheme | None:
    """QuantizationArgs of inputs; None when they are not rounded.

    Scales for groups of columns of each token keep the inputs in 16 bits, and so do 4-bit floats,
    which is more accurate and is reported. Raises CheckpointError or UnsupportedModelError by key.
    """
    _check_keys(fields)
    kind, bits = _kind(fields), fields.integer("num_bits", 1, 64, 8)
    if (kind, bits) == ("float", 4):
        report.decide(INPUTS_OVER_FP4)
        return None
    if bits != 8:
        raise UnsupportedModelError(
            f"{fields.name('num_bits')} is {bits}; supported are inputs of 8 bits, and 4-bit floats"
        )
    symmetric = fields.flag("symmetric", True)
    if kind == "float" and not symmetric:
        raise fields.error("symmetric", False, "true for float inputs")
    strategy = _strategy(fields, fields.integer("group_size", -1, _MAX_GROUP, 0))
    dynamic = fields.values.get("dynamic", False)
    if not isinstance(dynamic, bool):
        raise UnsupportedModelError(
            f"{fields.name('dynamic')} is {shown(dynamic)}; supported are true and false"
        )
    if dynamic and strategy == "group":
        report.decide(INPUTS_KEPT)
        return None
    if strategy != ("token" if dynamic else "tensor"):
        raise UnsupportedModelError(
            f"{fields.name('strategy')} is {shown(strategy)}; supported for inputs are token and "
            "group when dynamic, tensor when not",
            hint="a dynamic scale of a whole batch would make answers depend on their neighbours",
        )
    return InputScheme(kind, symmetric, dynamic, 448.0 if kind == "float" else 127.5)


def preset(name: str, fields: Fields, layout: str, report: LoadReport) -> TensorScheme:
    """The scheme that a preset name (``W4A16``) stands for.

    Raises UnsupportedModelError for names that are unknown or not implemented.
    """
    upper = name.upper()
    token8, token_fp8 = InputScheme("int"), InputScheme("float", top=448.0)
    nvfp4, mxfp4 = (WeightScheme(4, "float", True, "group", size) for size in GROUPS)
    known: dict[str, TensorScheme] = {
        "UNQUANTIZED": TensorScheme(name, None),
        "W4A16_ASYM": TensorScheme(name, WeightScheme(4, "int", False, "group", 128)),
        "W8A8": TensorScheme(name, WeightScheme(8, "int"), token8, layout),
        "INT8": TensorScheme(name, WeightScheme(8, "int"), token8, layout),
        "W4AFP8": TensorScheme(name, WeightScheme(4, "int", True, "group", 128), token_fp8, layout),
        "FP8": TensorScheme(
            name,
            WeightScheme(8, "float", strategy="tensor"),
            InputScheme("float", dynamic=False, top=448.0),
            layout,
        ),
        "FP8_DYNAMIC": TensorScheme(name, WeightScheme(8, "float"), token_fp8, layout),
        "FP8_BLOCK": TensorScheme(
            name, WeightScheme(8, "float", strategy="block", block=(128, 128))
        ),
        "NVFP4A16": TensorScheme(name, nvfp4),
        "NVFP4": TensorScheme(name, nvfp4),
        "MXFP4A16": TensorScheme(name, mxfp4),
        "MXFP4": TensorScheme(name, mxfp4),
    }
    if upper == "FP8_BLOCK":
        report.decide(INPUTS_KEPT)
    if upper in ("NVFP4", "MXFP4"):
        report.decide(INPUTS_OVER_FP4)
    if upper in known:
        return known[upper]
    plain = re.fullmatch(r"W([2-8])A(8|16)", upper)
    if plain is None:
        raise UnsupportedModelError(
            f"{fields.name(name[:80])} is a preset that is not supported; supported are "
            f"{', '.join(known)}, W2A16 to W8A16 and W2A8 to W7A8"
        )
    weights = WeightScheme(int(plain[1]), "int", True, "group", 128)
    return TensorScheme(name, weights, token8 if plain[2] == "8" else None, layout)


def _part(fields: Fields, key: str) -> Fields:
    return Fields(fields.where, fields.mapping(key), f"{fields.prefix}{key}.")


def _check_keys(fields: Fields) -> None:
    """Refuse keys that are not understood: they may change the numbers."""
    for key, value in fields.values.items():
        if key not in _KEYS and value:
            raise UnsupportedModelError(
                f"{fields.name(str(key)[:80])} is {shown(value)}: this key is not known, and may "
                "change the numbers"
            )


def _kind(fields: Fields) -> NumberKind:
    kind = fields.text("type", "int").lower()
    if kind not in ("int", "float"):
        raise fields.error("type", kind, "int or float")
    return "float" if kind == "float" else "int"


def _strategy(fields: Fields, group_size: int) -> Any:
    """The strategy in lower case, from the group size where none is given."""
    implied = "group" if group_size > 0 else "channel" if group_size == -1 else "tensor"
    return fields.text("strategy", implied).lower()


def _block(fields: Fields) -> tuple[int, int]:
    """(rows, columns) of a block; "128x128" in old files."""
    found = fields.values.get("block_structure")
    sizes = found.split("x") if isinstance(found, str) and len(found) < 20 else found
    if isinstance(found, str) and isinstance(sizes, list):
        sizes = [int(part) if part.isdecimal() else 0 for part in sizes]
    return block_size(fields, "block_structure", sizes)


def block_size(fields: Fields, key: str, sizes: Any) -> tuple[int, int]:
    """Two positive numbers, (rows, columns) of a block.

    Raises CheckpointError naming ``key`` when ``sizes`` is anything else.
    """
    good = isinstance(sizes, list) and len(sizes) == 2
    if not good or not all(type(n) is int and 0 < n <= _MAX_GROUP for n in sizes):
        raise fields.error(key, sizes, "two positive whole numbers")
    return sizes[0], sizes[1]


def groups_of(fields: Fields) -> Mapping[str, Any]:
    """``config_groups``; raises CheckpointError unless each is an object or a list of targets."""
    groups = fields.mapping("config_groups")
    for name, group in groups.items():
        if not isinstance(group, (Mapping, list)):
            raise fields.error(f"config_groups.{name[:80]}", group, "an object or a list")
    return groups
