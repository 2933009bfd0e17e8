"""Quantization methods of Hugging Face folders, found by the name that the config gives."""

from __future__ import annotations

from importlib import import_module

from ...model.report import LoadReport
from .base import Method, QuantizedModule, Read
from .detect import QuantizationConfig, unsupported

__all__ = ["Method", "QuantizedModule", "Read", "open_method"]

# quant_method -> module beside this file that offers ``open_method(where, config, report)``.
_METHODS: dict[str, str] = {
    "auto-round": "auto_round",
    "awq": "awq",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed_tensors",
    "fp8": "fp8",
    "gptq": "gptq",
    "hqq": "hqq",
    "modelopt": "modelopt",
    "quark": "quark",
    "torchao": "torchao",
}


def open_method(found: QuantizationConfig, report: LoadReport) -> Method:
    """The method that a folder's config names.

    Raises UnsupportedModelError, naming it, for a method that is not implemented.
    """
    if found.method not in _METHODS:
        raise unsupported(found.place, found.method, tuple(_METHODS))
    module = import_module(f".{_METHODS[found.method]}", __name__)
    method: Method = module.open_method(found.place, found.values, report)
    return method
