"""How the C kernels take inputs where a run leaves that to them: by format; no torch here."""

from __future__ import annotations

from ..formats.code_tables import counts_halves
from ..formats.weight_format import InputRule, WeightFormat


def default_rule(form: WeightFormat) -> InputRule:
    """The rule for weights of a format that leaves inputs alone (figures: docs/performance.md).

    Products of rounded inputs take the entries of a table as bytes. Where those are others (NF4,
    FP4) the rounding of both costs more than 0.005 nats, so inputs stay floats. Entries that are
    whole halves (MXFP4, NVFP4) are bytes as well.
    """
    largest = max(map(abs, form.table), default=0.0)
    bytes_already = all((127 * entry / (largest or 1.0)).is_integer() for entry in form.table)
    return "int8-block32" if bytes_already or counts_halves(form.table) else "float"
