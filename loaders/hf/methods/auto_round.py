"""AutoRound: GPTQ's or AWQ's tensors under labels of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...model.report import LoadReport
from .awq import AWQ, read_awq_config
from .gptq import GPTQ
from .gptq_config import read_auto_round_config


def open_auto_round(place: str, config: Mapping[str, Any], report: LoadReport) -> GPTQ | AWQ:
    """The method of ``quant_method: auto-round``.

    Raises:
        CheckpointError: the config is malformed.
        UnsupportedModelError: a packing or setting that is not implemented.
    """
    settings = read_auto_round_config(place, config)
    if settings is not None:
        return GPTQ(settings, report)
    return AWQ(read_awq_config(place, config, packing="gemm"), report)
