"""Formats of a model in one table."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfbyte.bench.engine import BenchPlan
from halfbyte.bench.formats import formats_facts, formats_table, run_formats
from halfbyte.errors import ConfigError

FIXTURES = Path(__file__).parents[1] / "fixtures"
TEXT = "The quick brown fox jumps over the lazy dog. " * 10
PLAN = BenchPlan((8,), (4,), repetitions=1)


def test_schemes_and_files_have_a_row_each() -> None:
    dense = str(FIXTURES / "fp16-llama-spm")
    said: list[str] = []
    rows = run_formats(dense, ("w8a16", "w4a16", dense), TEXT, 16, 2, PLAN, 1, said.append)
    assert [row.format for row in rows] == ["dense", "w8a16", "w4a16", "fp16-llama-spm"]
    first, eight, four, again = rows
    assert first.bits == again.bits == 16
    # Groups of 128 take 16 bits of scale, and 4 of zero point where there is one.
    assert 8.1 < eight.bits < 8.3 and 4.1 < four.bits < 4.4
    assert first.megabytes > eight.megabytes > four.megabytes
    assert first.kl == again.kl == 0 < eight.kl < four.kl
    assert first.ppl == again.ppl != four.ppl
    assert all(row.prefill > 0 and row.decode > 0 for row in rows)
    table = formats_table(rows)
    assert len(table.splitlines()) == 6 and max(map(len, table.splitlines())) <= 100
    assert formats_facts(rows)[1]["format"] == "w8a16"
    assert any("w4a16" in line for line in said)


def test_a_quantized_model_is_not_taken_for_the_dense_one() -> None:
    model = str(FIXTURES / "awq-gemm-g64-llama")
    with pytest.raises(ConfigError, match="quantized already"):
        run_formats(model, (), TEXT, 16, 2, PLAN, 1, print)
