"""The list of faults still fits the tree; `make mutate` tries them."""

from __future__ import annotations

import pytest
from faults import FAULTS, KernelFault
from mutate import ROOT, table_of


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.path}:{fault.wrong[:24]}")
def test_a_fault_changes_one_place(fault: KernelFault) -> None:
    text = (ROOT / "kernels" / fault.path).read_text(encoding="utf-8")
    assert text.count(fault.right) == 1 and fault.wrong != fault.right
    assert all((ROOT / name).is_file() for name in fault.tests)


def test_the_table_names_survivors() -> None:
    first, second = FAULTS[:2]
    page = table_of([(first, True, 3.4, ""), (second, False, 12.0, "FAILED test_x.py::test_y[1]")])
    assert "2 faults, 1 survived" in page and "**nobody** | 3 |" in page
    assert "`test_x.py::test_y[1]` | 12 |" in page
