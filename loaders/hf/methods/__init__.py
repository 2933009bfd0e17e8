"""Quantization methods of Hugging Face folders, found by the name that the config gives."""

from __future__ import annotations

from pkgutil import resolve_name

from ...model.report import LoadReport
from .base import FolderTensors, Method, QuantizedModule, Read
from .detect import QuantizationConfig, unsupported

__all__ = ["METHODS", "FolderTensors", "Method", "QuantizedModule", "Read", "open_method"]

METHODS: dict[str, str] = {
    "auto-round": "auto_round:open_auto_round",
    "awq": "awq:open_awq",
    "bitsandbytes": "bitsandbytes:BitsAndBytes",
    "compressed-tensors": "compressed_tensors:CompressedTensors",
    "fp8": "fp8:open_fp8",
    "gptq": "gptq:open_gptq",
    "hqq": "hqq:HQQ",
    "mlx": "mlx:MLX",
    "modelopt": "modelopt:open_modelopt",
    "mxfp4": "mxfp4:Mxfp4",
    "quark": "quark:open_quark",
    "torchao": "torchao:TorchAO",
}
"""``quant_method`` of a config -> module beside this file and what in it makes the method.

That takes (file and key for messages, config, report); it is imported when a folder wants it,
since most of the modules import torch.
"""


def open_method(found: QuantizationConfig, report: LoadReport) -> Method:
    """The method that a folder's config names.

    Raises UnsupportedModelError, naming it, for a method that is not implemented.
    """
    if found.method not in METHODS:
        raise unsupported(found.place, found.method, tuple(METHODS))
    method: Method = resolve_name(f"{__name__}.{METHODS[found.method]}")(
        found.place, found.values, report
    )
    return method
