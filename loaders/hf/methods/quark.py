"""``quark``: AMD's quantizer, FP8 weights with one scale for each tensor or row.

Its int8 and packed 4-bit exports are refused: their rules are not documented well enough to be
proven right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbyte.errors import UnsupportedModelError

from ...files.fields import Fields, shown
from ...model.report import LoadReport
from .ct_rules import texts
from .ct_scheme import InputScheme, TensorScheme, WeightScheme
from .uniform import UniformMethod

_HINT = "use a compressed-tensors checkpoint of the model (llm-compressor: W8A8, W4A16, FP8)"


def open_quark(place: str, config: Mapping[str, Any], report: LoadReport) -> UniformMethod:
    """The method for a folder whose config says ``quark``.

    Raises:
        CheckpointError: the config is damaged.
        UnsupportedModelError: anything but FP8 weights, one scheme for all modules.
    """
    top = Fields(place, config)
    whole = Fields(place, top.mapping("global_quant_config"), "global_quant_config.")
    export = Fields(place, top.mapping("export"), "export.")
    form = export.text("weight_format", "real_quantized")
    if form != "real_quantized":
        raise _unsupported(export, "weight_format", form, "real_quantized")
    _check_exceptions(top, whole)
    if whole.mapping("output_tensors"):
        raise _unsupported(whole, "output_tensors", "set", "none")
    weight = Fields(place, whole.mapping("weight"), "global_quant_config.weight.")
    _check_dtype(weight)
    strategy = weight.text("qscheme")
    axis = weight.integer("ch_axis", -1, 1, 0)
    if strategy not in ("per_tensor", "per_channel") or (strategy == "per_channel" and axis):
        found = f"{strategy} of axis {axis}"
        raise _unsupported(weight, "qscheme", found, "per_tensor, and per_channel of axis 0")
    inputs = None
    if whole.mapping("input_tensors"):
        given = Fields(place, whole.mapping("input_tensors"), "global_quant_config.input_tensors.")
        _check_dtype(given)
        if given.text("qscheme") != "per_tensor" or given.flag("is_dynamic", False):
            how = f"{given.text('qscheme')}, dynamic {given.flag('is_dynamic', False)}"
            raise _unsupported(given, "qscheme", how, "per_tensor, not dynamic")
        inputs = InputScheme("float", dynamic=False, top=448.0)
    names = set(texts(top.name("exclude"), config.get("exclude")))
    return UniformMethod(
        "quark",
        place,
        TensorScheme(
            "global_quant_config",
            WeightScheme(8, "float", strategy="tensor" if strategy == "per_tensor" else "channel"),
            inputs,
        ),
        ("weight_scale",),
        lambda module: module in names,
        report,
    )


def _check_exceptions(top: Fields, whole: Fields) -> None:
    """Refuse a scheme for single layers; those that only quantize the KV cache are accepted."""
    if top.mapping("layer_type_quant_config"):
        raise _unsupported(top, "layer_type_quant_config", "set", "none")
    for glob, given in top.mapping("layer_quant_config").items():
        same = isinstance(given, Mapping) and all(
            given.get(key) == whole.values.get(key) for key in ("weight", "input_tensors")
        )
        cache = isinstance(given, Mapping) and given.get("output_tensors")
        if not same or (cache and not glob.endswith(("k_proj", "v_proj"))):
            raise _unsupported(
                top, f"layer_quant_config.{glob[:80]}", given, "the scheme of all others"
            )


def _check_dtype(fields: Fields) -> None:
    dtype = fields.text("dtype")
    if dtype != "fp8_e4m3":
        raise _unsupported(fields, "dtype", dtype, "fp8_e4m3")


def _unsupported(fields: Fields, key: str, found: object, supported: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{fields.name(key)} is {shown(found)}; supported from Quark: {supported}", hint=_HINT
    )
