"""``fp8``: FP8 weights as DeepSeek publishes them, and per-tensor ones with the same label.

With ``weight_block_size``, ``weight_scale_inv`` holds a scale for each block of rows and columns;
despite its name the weight is multiplied by it. Without, one scale serves the whole tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbyte.errors import UnsupportedModelError

from ...files.fields import Fields, shown
from ...model.report import LoadReport
from .ct_rules import texts
from .ct_scheme import INPUTS_KEPT, InputScheme, TensorScheme, WeightScheme, block_size
from .uniform import UniformMethod


def open_fp8(place: str, config: Mapping[str, Any], report: LoadReport) -> UniformMethod:
    """The method for a folder whose config says ``fp8``.

    Raises:
        CheckpointError: the config is damaged.
        UnsupportedModelError: another float8 than e4m3, or static inputs with blocks.
    """
    fields = Fields(place, config)
    form = fields.text("fmt", "e4m3")
    if form not in ("e4m3", "float8_e4m3fn"):
        raise UnsupportedModelError(f"{fields.name('fmt')} is {shown(form)}; supported is e4m3")
    inputs = fields.text("activation_scheme", "dynamic")
    if inputs not in ("dynamic", "static"):
        raise fields.error("activation_scheme", inputs, "dynamic or static")
    skipped = {
        name
        for key in ("modules_to_not_convert", "ignored_layers")
        for name in texts(fields.name(key), config.get(key))
    }
    if fields.present("weight_block_size"):
        if inputs == "static":
            raise UnsupportedModelError(
                f"{fields.name('activation_scheme')} is 'static' with weight_block_size; "
                "supported with blocks is dynamic"
            )
        block = block_size(fields, "weight_block_size", config["weight_block_size"])
        report.decide(INPUTS_KEPT)
        scheme = TensorScheme("fp8", WeightScheme(8, "float", strategy="block", block=block))
    else:
        scheme = TensorScheme(
            "fp8",
            WeightScheme(8, "float", strategy="tensor"),
            InputScheme("float", dynamic=inputs == "dynamic", top=448.0),
        )
        if inputs == "dynamic":
            report.decide("dynamic FP8 inputs have a scale for each token")
    return UniformMethod(
        "fp8",
        place,
        scheme,
        ("weight_scale_inv", "weight_scale"),
        lambda module: not skipped.isdisjoint(_above(module)),
        report,
    )


def _above(module: str) -> list[str]:
    """The module's name and those of all modules that hold it."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
