"""Recognise quantized Hugging Face folders: by their config, and by tensors that betray them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ...files.fields import shown
from ...files.folder_files import ModelFolder
from ...model.report import LoadReport

# Side file -> method, where the file itself need not name one.
_SIDE_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "quantization_config.json": "auto-round",
    "hf_quant_config.json": "modelopt",
}
# Key of config.json -> method, where the config itself names none.
_DEFAULTS = {"compression_config": "compressed-tensors", "quantization": "mlx"}
# Values of ``mode``, which no other tool's config has.
_MLX_MODES = ("affine", "mxfp4", "mxfp8", "nvfp4")
# Other spellings of a method's name.
_ALIASES = {"intel/auto-round": "auto-round", "modelopt_fp4": "modelopt"}
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
    "_blocks": "mxfp4",
    ".biases": "mlx",
}

# Keys that say the same -> words for their value; for a bool, those of true | those of false.
_CLAIMS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("bits", "w_bit", "num_bits"), "{} bits"),
    (("group_size", "q_group_size"), "group {}"),
    (("sym", "symmetric"), "sym|asym"),
    (("zero_point",), "asym|sym"),
    (("desc_act",), "desc_act|"),
    (("load_in_4bit", "_load_in_4bit"), "4 bits|"),
    (("load_in_8bit", "_load_in_8bit"), "8 bits|"),
)


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """A quantization config and where it was found.

    Attributes:
        place: file and key, for messages.
        method: the method's name, lower case.
        values: the config itself.
    """

    place: str
    method: str
    values: Mapping[str, Any]


def quantization_config(
    folder: ModelFolder, config: Mapping[str, Any], report: LoadReport
) -> QuantizationConfig | None:
    """The folder's quantization config: in ``config.json`` first, else in a side file.

    MLX's is called ``quantization``, often with a copy under ``quantization_config``; a
    ``quantization_config`` that names its method comes before it. A side file that contradicts
    ``config.json`` gives a warning. Raises CheckpointError when a config is not an object.
    """
    text = config.get("text_config")
    named = config.get("quantization_config")
    places: list[tuple[str, Any]] = []
    if not (isinstance(named, Mapping) and (named.get("quant_method") or named.get("method"))):
        places.append(("config.json quantization", config.get("quantization")))
    places.append(("config.json quantization_config", named))
    places.append(("config.json compression_config", config.get("compression_config")))
    if isinstance(text, Mapping):
        places.append(("config.json text_config", text.get("quantization_config")))
    sides = [(name, default, folder.read_json(name)) for name, default in _SIDE_FILES.items()]
    for place, found in places:
        if not found:
            continue
        default = _DEFAULTS.get(place.rpartition(" ")[2], "unknown")
        if isinstance(found, Mapping) and found.get("mode") in _MLX_MODES:
            default = "mlx"
        chosen = _named(f"{folder.path}: {place}", found, default)
        for name, _, side in sides:
            if side is not None:
                _compare(place, chosen.values, name, side, report)
        return chosen
    for name, default, side in sides:
        if side is not None:
            return _named(str(folder.path / name), side, default)
    return None


def claim(config: QuantizationConfig) -> str:
    """What a config says of the weights, in a line: ``gptq, 4 bits, group 128, sym``.

    Only values of plain kinds are taken; several groups of targets are only counted.
    """
    values = config.values
    groups = values.get("config_groups")
    if isinstance(groups, Mapping):
        if len(groups) != 1:
            return f"{config.method}, {len(groups)} config_groups"
        scheme = next(iter(groups.values()))
        weights = scheme.get("weights") if isinstance(scheme, Mapping) else None
        values = weights if isinstance(weights, Mapping) else {}
    words = [config.method]
    for keys, text in _CLAIMS:
        value = next((values[key] for key in keys if key in values), None)
        if isinstance(value, bool) and "|" in text:
            words.append(text.split("|")[0 if value else 1])
        elif isinstance(value, (int, str)) and "{}" in text:
            words.append(text.format(shown(value).strip("'\"")))
    return ", ".join(word for word in words if word)


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
                hint="download the whole repository: config.json or a side file says how",
            )


def unsupported(place: str, method: str, known: tuple[str, ...]) -> UnsupportedModelError:
    """The refusal of a method that is not implemented."""
    return UnsupportedModelError(
        f"{place}: the weights are quantized with {method}, which is not supported",
        hint=f"what loads: GGUF files, unquantized safetensors, and folders quantized with "
        f"{', '.join(known) or 'nothing else'}",
    )


def _named(place: str, config: Any, default: str) -> QuantizationConfig:
    """The config with the method that it names, in lower case."""
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{place} is {shown(config)}; expected an object")
    named = config.get("quant_method") or config.get("method")
    method = default
    if isinstance(named, str):
        method = shown(named.lower())[1:-1]
    elif config.get("load_in_4bit") or config.get("load_in_8bit"):
        method = "bitsandbytes"
    return QuantizationConfig(place, _ALIASES.get(method, method), config)


def _compare(
    place: str, chosen: Mapping[str, Any], name: str, side: Mapping[str, Any], report: LoadReport
) -> None:
    """Warn of settings that two configs of one folder give different values."""
    for key in sorted(set(chosen) & set(side)):
        if chosen[key] != side[key]:
            report.warn(
                f"{key} is {shown(chosen[key])} in {place} and {shown(side[key])} in {name}; "
                f"{place} is followed"
            )
