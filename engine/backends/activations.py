"""The option ``activations``: what backends and checkpoints allow of it.

It says how inputs of weight-only quantized matrices are rounded. A weight whose own format rounds
inputs keeps that, and dense weights take floats.
"""

from __future__ import annotations

import logging

from halfbyte.choices import ActivationsName
from halfbyte.errors import ConfigError

from ...kernels.formats.weight_format import InputRule, WeightFormat, no_whole_numbers
from ...loaders.base import Checkpoint
from ..config import EngineConfig

log = logging.getLogger(__name__)

BY_TOKEN = "int8-token"

# The form of the C kernels without any instruction for products of bytes, in which rounded inputs
# take five times as long as floats.
_WITHOUT_BYTES = "plain"


def chosen_rule(config: EngineConfig, form: str = "") -> InputRule | None:
    """The rule that a run asks for; None leaves it to the backend.

    float32 asks for the exact answers of a format's own tool.

    Args:
        config: what is asked for.
        form: name of the C kernels' form, if they compute.
    """
    wanted = config.activations
    if wanted != "auto":
        return wanted
    return "float" if config.dtype == "float32" or form == _WITHOUT_BYTES else None


def refuse_rules(config: EngineConfig, backend: str, *rules: InputRule) -> None:
    """For a backend without these rules. Raises ConfigError where one of them is asked for."""
    if config.activations in rules:
        raise ConfigError(
            f"activations is {config.activations!r}, but backend {backend!r} does not round so",
            hint="use activations='auto' or 'float', or backend='cpu_c' or backend='reference'",
        )


def left_as_floats(rule: InputRule | None, form: WeightFormat | None, taken: str) -> str | None:
    """Why a matrix cannot be run with a rule, from how its products would take inputs; or None.

    ``int8-token`` is obeyed or refused. Under ``int8-block32`` what stands for no whole numbers
    takes floats.
    """
    if rule != BY_TOKEN or form is None or form.act is not None or taken != "float":
        return None
    return (
        f"activations is {BY_TOKEN!r}, but its codes ({form.bits} bits, group size "
        f"{form.group_size}, zero kind {form.zero!r}) are multiplied by floats here; use "
        "activations='auto'"
    )


def check_activations(activations: ActivationsName, checkpoint: Checkpoint) -> None:
    """Whether a checkpoint allows what is asked for, from its headers alone.

    Raises:
        ConfigError: ``int8-token``, and the format of a quantized matrix has another rule, or has
            no whole numbers.
    """
    quantized = {info: info.format for info in checkpoint.tensors() if info.format is not None}
    weight_only = [form for form in quantized.values() if form.act is None]
    if activations == "int8-block32" and not weight_only:
        log.warning(
            "activations is 'int8-block32', but %s has no weight-only quantized matrix that it "
            "could apply to",
            checkpoint.path,
        )
    if activations != BY_TOKEN:
        return
    if not quantized:
        raise ConfigError(
            f"activations is {BY_TOKEN!r}, but no matrix of {checkpoint.path} is quantized",
            hint="use 'auto' or 'float', or quantize='w8a8' with an unquantized model",
        )
    others = [info for info, form in quantized.items() if not _by_token(form)]
    if others:
        raise ConfigError(
            f"activations is {BY_TOKEN!r}, but {len(others)} of {len(quantized)} quantized "
            f"matrices of {checkpoint.path} cannot take inputs rounded by token: "
            f"{others[0].name} is {others[0].label}",
            hint="use 'auto' or 'float'"
            + ", or 'int8-block32' where the backend has it" * bool(weight_only),
        )


def _by_token(form: WeightFormat) -> bool:
    own = form.act
    return no_whole_numbers(form) is None if own is None else own.name == BY_TOKEN
