"""How the C kernels take inputs where a run leaves that to them: by format; no torch here."""

from __future__ import annotations

from ..formats.weight_format import InputRule, WeightFormat


def default_rule(form: WeightFormat) -> InputRule:
    """The rule for weights of a format that leaves inputs alone (figures: docs/performance.md)."""
    return "int8-block32"
