"""The quantization config of GPTQ folders, as AutoGPTQ, GPTQModel and AutoRound write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ...files.fields import Fields, shown
from .overrides import Dynamic, ExtraConfig, Overrides, Said, read_said, refuse_settings

Version = Literal["v1", "v2"]

# Values under which a key leaves the numbers alone; any other value is refused.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "rotation": ("",),
    "activation": (),
    "adapter": ({},),
    "lora": ({},),
    "pack_dtype": ("int32",),
    "is_marlin_format": (False,),
}
_REFUSED_AUTO_ROUND: dict[str, tuple[Any, ...]] = {
    "act_bits": tuple(range(16, 33)),
    "super_bits": (),
    "super_group_size": (),
    "rotation_config": ({},),
    "data_type": ("int",),
}
_VERSIONS: dict[str, Version] = {"gptq": "v1", "gptq_v2": "v2"}
# Words of AutoRound's packing_format, apart from the version that they imply.
_PACKING = frozenset(
    (
        "auto_round",
        "auto",
        "auto_gptq",
        "gptq",
        "gptqmodel",
        "exllamav2",
        "triton",
        "auto_awq",
        "awq",
    )
)


@dataclass(frozen=True, slots=True)
class GPTQConfig:
    """What a GPTQ config says.

    Attributes:
        where: file and key, for messages.
        default: settings of modules without an override.
        overrides: those of the others.
        version: v1 stores zero points less 1, v2 stores them as they are.
        label: the key and value that say so, for messages.
        firm: the label holds for symmetric modules, too.
        careful: the writer subtracts from whole words, so that v1 zeros of 0 can be restored.
    """

    where: str
    default: Said
    overrides: Overrides
    version: Version
    label: str
    firm: bool
    careful: bool

    def said(self, module: str) -> Said:
        """What the config says about a module."""
        return self.overrides.apply(module, self.default)


def read_gptq_config(where: str, values: Mapping[str, Any]) -> GPTQConfig:
    """The config of ``quant_method: gptq``.

    Raises:
        CheckpointError: values are malformed, or two keys contradict each other.
        UnsupportedModelError: a layout or a setting that is not implemented.
    """
    config = Fields(where, values)
    refuse_settings(config, _REFUSED)
    labels = {
        key: config.text(key) for key in ("checkpoint_format", "format") if config.present(key)
    }
    known = {key: label.lower() for key, label in labels.items()}
    for key, label in known.items():
        if label not in _VERSIONS:
            raise UnsupportedModelError(
                f"{config.name(key)} is {shown(label)}; supported are {', '.join(_VERSIONS)}",
                hint="save the model again in the gptq or gptq_v2 format",
            )
    if len(set(known.values())) > 1:
        raise CheckpointError(
            f"{where}: checkpoint_format is {shown(labels['checkpoint_format'])} but format is "
            f"{shown(labels['format'])}; expected the same value"
        )
    key, label = next(iter(known.items()), ("checkpoint_format", "gptq"))
    text = f"{key} {label}" if known else "no checkpoint_format, which means gptq"
    return GPTQConfig(
        where,
        read_said(config, Said()),
        Dynamic(config, _REFUSED),
        _VERSIONS[label],
        text,
        True,
        _careful_writer(config),
    )


def read_auto_round_config(where: str, values: Mapping[str, Any]) -> GPTQConfig | None:
    """The config of ``quant_method: auto-round``; None when the packing is that of AWQ.

    Raises:
        CheckpointError: values are malformed.
        UnsupportedModelError: a packing or a setting that is not implemented.
    """
    config = Fields(where, values)
    refuse_settings(config, _REFUSED_AUTO_ROUND)
    # Old files name the packing under "backend"; newer ones, a preference for kernels.
    key = "packing_format" if config.present("packing_format") else "backend"
    packing = config.text(key, "auto_round:auto_gptq").lower()
    packing = packing.replace("auto-round", "auto_round").replace("autoround", "auto_round")
    words = packing.split(":")
    if not set(words) <= _PACKING:
        raise UnsupportedModelError(
            f"{config.name(key)} is {shown(packing)}; supported are auto_round:auto_gptq, "
            "auto_round:gptqmodel, auto_round:exllamav2 and auto_round:auto_awq"
        )
    if "auto_awq" in words or "awq" in words:
        return None
    v1 = "auto_gptq" in words or "gptq" in words or words == ["auto"]
    return GPTQConfig(
        where,
        read_said(config, Said()),
        ExtraConfig(config, _REFUSED_AUTO_ROUND),
        "v1" if v1 else "v2",
        f"{key} {packing}",
        v1 or "gptqmodel" in words,
        True,
    )


def _careful_writer(config: Fields) -> bool:
    """Whether ``meta.quantizer`` names a tool whose subtraction can be undone."""
    meta = config.values.get("meta")
    names = meta.get("quantizer") if isinstance(meta, Mapping) else None
    names = [names] if isinstance(names, str) else names if isinstance(names, list) else []
    for name in names:
        tool, _, version = str(name).lower().replace("-", "_").partition(":")
        if tool in ("halfbyte", "auto_round", "autoround", "intel/auto_round"):
            return True
        parts = [
            int(part) if part.isdecimal() and len(part) < 9 else 0
            for part in version.split(".")[:2]
        ]
        if tool == "gptqmodel" and parts >= [0, 9]:
            return True
    return False
