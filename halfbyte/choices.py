"""Values of options that the engine and the command line share; importing them loads nothing."""

from __future__ import annotations

from typing import Literal

DeviceName = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
KVDtype = Literal["auto", "float32", "float16", "bfloat16", "int8", "float8_e4m3fn"]
ActivationsName = Literal["auto", "float", "int8-block32", "int8-token"]
BackendName = Literal["auto", "cuda_triton", "cpu_c", "cpu_torch", "interpreter", "reference"]
QuantizeMethod = Literal[
    "rtn",
    "gptq",
    "awq",
    "awq+gptq",
    "smoothquant",
    "smoothquant+gptq",
    "adaround",
    "qat",
    "lloyd-max",
    "nf4",
    "fp4",
    "llm-int8",
]
"""Ways to find the codes of a dense model."""
QuantizeScheme = Literal["w4a16", "w3a16", "w8a16", "w8a8", "fp8"]
"""What becomes of weights and inputs."""
