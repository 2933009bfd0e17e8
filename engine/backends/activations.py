"""The option ``activations``: what backends and checkpoints allow of it.

It says how inputs of weight-only quantized matrices are rounded. A weight whose own format rounds
inputs keeps that, and dense weights take floats.
"""

from __future__ import annotations

import logging

from halfbyte.choices import ActivationsName
from halfbyte.errors import ConfigError

from ...kernels.formats.weight_format import InputRule, WeightFormat
from ...loaders.base import Checkpoint
from ..config import EngineConfig

log = logging.getLogger(__name__)

_BY_TOKEN = "int8-token"


# The form of the C kernels without any instruction for products of bytes, in which rounded inputs
# take five times as long as floats.
_WITHOUT_BYTES = "plain"


def chosen_rule(config: EngineConfig, form: str = "") -> InputRule | None:
    """The rule that a run asks for; None leaves it to the backend.

    float32 asks for the exact answers of a format's own tool. ``int8-token`` leaves nothing to a
    rule: see :func:`check_activations`.

    Args:
        config: what is asked for.
        form: name of the C kernels' form, if they compute.
    """
    wanted = config.activations
    if wanted in ("float", "int8-block32"):
        return wanted
    return "float" if config.dtype == "float32" or form == _WITHOUT_BYTES else None


def require_floats(config: EngineConfig, backend: str) -> None:
    """For backends without another rule. Raises ConfigError where one is asked for."""
    if config.activations == "int8-block32":
        raise ConfigError(
            f"activations is 'int8-block32', but backend {backend!r} takes floats",
            hint="use activations='auto' or 'float', or backend='cpu_c' or backend='reference'",
        )


def check_activations(activations: ActivationsName, checkpoint: Checkpoint) -> None:
    """Whether a checkpoint allows what is asked for, from its headers alone.

    Raises:
        ConfigError: ``int8-token``, and not every quantized matrix rounds its inputs so.
    """
    quantized = {info: info.format for info in checkpoint.tensors() if info.format is not None}
    weight_only = [form for form in quantized.values() if form.act is None]
    if activations == "int8-block32" and not weight_only:
        log.warning(
            "activations is 'int8-block32', but %s has no weight-only quantized matrix that it "
            "could apply to",
            checkpoint.path,
        )
    if activations != _BY_TOKEN:
        return
    if not quantized:
        raise ConfigError(
            f"activations is {_BY_TOKEN!r}, but no matrix of {checkpoint.path} is quantized",
            hint="use 'auto' or 'float', or quantize='w8a8' with an unquantized model",
        )
    others = [info for info, form in quantized.items() if _own_rule(form) != _BY_TOKEN]
    if others:
        raise ConfigError(
            f"activations is {_BY_TOKEN!r}, but the format of {len(others)} of {len(quantized)} "
            f"quantized matrices of {checkpoint.path} does not round inputs by token: "
            f"{others[0].name} is {others[0].label}",
            hint="use 'auto' or 'float'"
            + ", or 'int8-block32' where the backend has it" * bool(weight_only),
        )


def _own_rule(form: WeightFormat) -> str | None:
    return None if form.act is None else form.act.name
