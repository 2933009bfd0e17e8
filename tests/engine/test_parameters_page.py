"""docs/parameters.md is what the table of sampling fields makes."""

from __future__ import annotations

from pathlib import Path

from halfbyte.engine.parameters_page import parameters_page
from halfbyte.engine.params import defaults, table

PAGE = Path(__file__).parents[2] / "docs" / "parameters.md"


def test_the_page_is_made_from_the_table() -> None:
    remedy = "python -m halfbyte.engine.parameters_page > docs/parameters.md"
    assert PAGE.read_text() == parameters_page(), f"it is stale: {remedy}"


def test_every_field_has_its_line_with_range_and_default() -> None:
    lines = {line.split("`")[1]: line for line in parameters_page().splitlines() if "| `" in line}
    assert set(lines) >= set(table())
    for name, param in table().items():
        assert param.range.replace("|", "\\|") in lines[name]
        if isinstance(defaults()[name], (int, float)):
            assert f"`{defaults()[name]!r}`" in lines[name]
