"""Recognise quantized Hugging Face folders, so that they are refused by name and not misread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from halfbyte.errors import UnsupportedModelError

from .fields import shown
from .folder_files import ModelFolder

# Side file -> method, where the file itself need not name one.
_SIDE_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "quantization_config.json": "auto-round",
    "hf_quant_config.json": "modelopt",
}
# Endings of tensor names that only quantized checkpoints have -> what writes them.
_ENDINGS = {
    ".qweight": "gptq or awq",
    ".qzeros": "gptq or awq",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "compressed-tensors or fp8",
    ".weight_scale_inv": "fp8",
    ".SCB": "bitsandbytes 8 bit",
    ".weight.absmax": "bitsandbytes 4 bit",
    ".W_q": "hqq",
}
_HINT = (
    "what loads today: GGUF files (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q6_K) and "
    "folders of unquantized safetensors (F32, F16, BF16)"
)


def refuse_quantized(folder: ModelFolder, config: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError when config or side files say that weights are quantized."""
    text = config.get("text_config")
    places = [("config.json quantization_config", config.get("quantization_config"))]
    places.append(("config.json compression_config", config.get("compression_config")))
    if isinstance(text, Mapping):
        places.append(("config.json text_config", text.get("quantization_config")))
    for place, found in places:
        if found:
            raise _error(f"{folder.path}: {place}", _method(found, "unknown"))
    for name, default in _SIDE_FILES.items():
        side = folder.read_json(name)
        if side is not None:
            raise _error(f"{folder.path / name}", _method(side, default))


def refuse_quantized_tensors(where: str, names: Iterable[str]) -> None:
    """Raise UnsupportedModelError when tensor names betray quantized weights without a config."""
    for name in names:
        method = next((m for end, m in _ENDINGS.items() if name.endswith(end)), None)
        if ".quant_state.bitsandbytes__" in name:
            method = "bitsandbytes 4 bit"
        if method:
            raise UnsupportedModelError(
                f"{where}: quantized tensors ({name[:120]}, as written by {method}) but no "
                "quantization config",
                hint=_HINT,
            )


def _method(config: Any, default: str) -> str:
    """The method that a quantization config names, in lower case."""
    if not isinstance(config, Mapping):
        return default
    named = config.get("quant_method") or config.get("method")
    if isinstance(named, str):
        return shown(named.lower())[1:-1]
    if config.get("load_in_4bit") or config.get("load_in_8bit"):
        return "bitsandbytes"
    return default


def _error(where: str, method: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{where}: the weights are quantized with {method}, which is not supported yet", hint=_HINT
    )
