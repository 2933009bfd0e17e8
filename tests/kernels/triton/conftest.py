"""Kernels of these tests run in Triton's interpreter, which is chosen when triton is imported."""

import os
import sys

import pytest

if "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"
elif os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("triton was imported without its interpreter", allow_module_level=True)
