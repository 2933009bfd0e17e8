"""Which formats have their inputs rounded where a run leaves that to the kernels."""

from __future__ import annotations

import pytest

from halfbyte.kernels.cpu.inputs import default_rule
from halfbyte.kernels.formats.activations import byte_table
from halfbyte.kernels.formats.canonical import WeightFormat
from halfbyte.kernels.formats.code_tables import E2M1, FP4, IQ4_NL, NF4


@pytest.mark.parametrize("table", [IQ4_NL, NF4, FP4, E2M1], ids=["iq4_nl", "nf4", "fp4", "e2m1"])
def test_tables_that_products_would_round_keep_float_inputs(table):
    kept = byte_table(table) == tuple(table)
    assert default_rule(WeightFormat(4, 64, "table", table)) == (
        "int8-block32" if kept else "float"
    )
    assert kept == (table in (IQ4_NL, E2M1))


@pytest.mark.parametrize("zero", ["none", "int", "float"])
def test_whole_numbers_multiply_rounded_inputs(zero):
    assert default_rule(WeightFormat(4, 128, zero)) == "int8-block32"
