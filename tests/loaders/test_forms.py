"""The format that headers tell is that of the weight that is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from halfbyte.kernels.formats.canonical import QuantizedLinear, WeightFormat
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.model.quantizing import QuantizingCheckpoint
from halfbyte.loaders.model.schemes import SCHEMES, SchemeName

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir())


def from_headers(loaded: WeightFormat, told: WeightFormat) -> WeightFormat:
    """The loaded format without what only data can show: even zero points, a static scale."""
    if loaded.zero == "none" and told.zero == "int":
        loaded = replace(loaded, zero="int")
    if loaded.act is not None and loaded.act.scale is not None:
        loaded = replace(loaded, act=replace(loaded.act, scale=0.0, zero=0))
    return loaded


@pytest.mark.parametrize("name", NAMES)
def test_headers_tell_the_format_that_is_loaded(name: str) -> None:
    ggufs = sorted((FIXTURES / name).glob("*.gguf"))
    checkpoint = open_checkpoint(ggufs[0] if ggufs else FIXTURES / name)
    formats = 0
    # One tensor of each label and kind of matrix.
    alike = {(i.label, i.name.split(".")[-2], i.format): i for i in checkpoint.tensors()}
    for info in alike.values():
        weight = checkpoint.load(info.name)
        if isinstance(weight, QuantizedLinear):
            assert info.format is not None, info.name
            assert from_headers(weight.format, info.format) == info.format
            formats += 1
        else:
            assert info.format is None, info.name
    assert formats > 0 or name == "fp16-llama-spm"
    checkpoint.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantizing_on_load_tells_its_format(scheme: SchemeName) -> None:
    checkpoint = QuantizingCheckpoint(open_checkpoint(FIXTURES / "fp16-llama-spm"), scheme)
    layer = [info for info in checkpoint.tensors() if ".layers.0." in info.name]
    quantized = 0
    for info in layer:
        weight = checkpoint.load(info.name)
        assert info.format == (weight.format if isinstance(weight, QuantizedLinear) else None)
        quantized += info.format is not None
    assert quantized == 7
    checkpoint.close()
