"""Forms of the C kernels that this processor lacks, emulated, by the tests of the others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import test_cpu_forms as forms
from cpu_support import library, needs_compiler, using
from emulation_support import EMULATED, EmulatedForm

from halfbyte.kernels.cpu.forms import Form

pytestmark = [needs_compiler, pytest.mark.slow]
TESTS = (
    forms.test_products,
    forms.test_packing,
    forms.test_rounded_products,
    forms.test_compact_numbers,
    forms.test_attention,
    forms.test_elementwise,
    forms.test_quantized_inputs,
    forms.test_calibration,
)
each_form = pytest.mark.parametrize("form", EMULATED, ids=[form.name for form in EMULATED])


@each_form
def test_the_form_has_its_width_and_tiles(form: EmulatedForm) -> None:
    with using(form):
        assert library().lanes == forms.LANES[form.real.name]
        assert library().amx == (form.real.name == "amx")


@each_form
@pytest.mark.parametrize("test", TESTS, ids=[test.__name__ for test in TESTS])
def test_what_every_form_must_do(form: EmulatedForm, test: Callable[[Form], None]) -> None:
    test(form)
