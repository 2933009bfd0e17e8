"""``modelopt``: NVIDIA's Model Optimizer, NVFP4, and FP8 with a scale for each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from halfbyte.errors import UnsupportedModelError

from ...files.fields import Fields, shown
from ...model.report import LoadReport
from .ct_rules import texts
from .ct_scheme import INPUTS_OVER_FP4, InputScheme, TensorScheme, WeightScheme
from .uniform import UniformMethod

_MAX_GLOBS = 1 << 10
_NVFP4 = TensorScheme("NVFP4", WeightScheme(4, "float", strategy="group", group_size=16))
_SCHEMES = {
    "FP8": TensorScheme(
        "FP8",
        WeightScheme(8, "float", strategy="tensor"),
        InputScheme("float", dynamic=False, top=448.0),
    ),
    "NVFP4": _NVFP4,
    "W4A16_NVFP4": _NVFP4,
}


def open_modelopt(place: str, config: Mapping[str, Any], report: LoadReport) -> UniformMethod:
    """The method for a folder with ``hf_quant_config.json``, or a config that says ``modelopt``.

    Raises:
        CheckpointError: the config is damaged.
        UnsupportedModelError: another algorithm than FP8 and NVFP4, named.
    """
    fields = Fields(place, config)
    if fields.present("quantization"):
        fields = Fields(place, fields.mapping("quantization"), "quantization.")
    algorithm = fields.text("quant_algo")
    if algorithm.upper() not in _SCHEMES:
        raise UnsupportedModelError(
            f"{fields.name('quant_algo')} is {shown(algorithm)}; supported from ModelOpt are "
            f"{', '.join(_SCHEMES)}",
            hint="for int8 or 4 bits use a compressed-tensors checkpoint (llm-compressor: W8A8, "
            "W4A16)",
        )
    if fields.present("kv_cache_quant_algo"):
        report.decide(
            f"kv_cache_quant_algo {shown(fields.values['kv_cache_quant_algo'])} is not used: the "
            "KV cache stays in 16 or 32 bits, which is more accurate"
        )
    globs = [
        glob
        for key in ("exclude_modules", "ignore")
        for glob in texts(fields.name(key), fields.values.get(key))
    ]
    if len(globs) > _MAX_GLOBS:
        raise fields.error("exclude_modules", f"{len(globs)} globs", f"at most {_MAX_GLOBS}")
    scheme = _SCHEMES[algorithm.upper()]
    if scheme.weights is not None and scheme.weights.fp4:
        size = fields.integer("group_size", 1, 1 << 20, 16)
        if size != 16:
            raise fields.error("group_size", size, "16 for NVFP4")
        if algorithm.upper() == "NVFP4":
            report.decide(INPUTS_OVER_FP4)
    return UniformMethod(
        "modelopt",
        place,
        scheme,
        ("weight_scale",),
        lambda module: any(_excludes(glob, module) for glob in globs),
        report,
    )


def _excludes(glob: str, module: str) -> bool:
    """Whether a glob matches; one with many stars could take very long, and is not followed."""
    return glob == module or (glob.count("*") <= 3 and fnmatchcase(module, glob))
