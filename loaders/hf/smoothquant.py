"""The exports of SmoothQuant's own repository, which are recognised and refused.

They are pickles of ``Int8OPTForCausalLM`` made with torch-int: int8 biases and outputs, a scale
product in every layer, attention in int8, and no quantization config. What SmoothQuant makes
today comes as compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbyte.errors import UnsupportedModelError

from ..files.fields import shown


def refuse_smoothquant(where: str, config: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError when ``config.json`` names a model of torch-int.

    Args:
        where: the file, for messages.
        config: its content.
    """
    names = config.get("architectures")
    for name in names if isinstance(names, list) else []:
        if isinstance(name, str) and name.startswith("Int8"):
            raise UnsupportedModelError(
                f"{where}: architectures has {shown(name)}: SmoothQuant's own int8 exports "
                "(torch-int) are not supported",
                hint="use a W8A8 checkpoint in compressed-tensors format: llm-compressor applies "
                "SmoothQuant to the original model and writes one",
            )
