"""SmoothQuant's own exports are named and refused, pickled or converted."""

from __future__ import annotations

import json

import pytest

from halfbyte.errors import UnsupportedModelError
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.hf.smoothquant import refuse_smoothquant

CONFIG = {"architectures": ["Int8OPTForCausalLM"], "model_type": "opt"}


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.safetensors"])
def test_exports_of_torch_int(tmp_path, weights):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / weights).write_bytes(b"never read")
    with pytest.raises(UnsupportedModelError) as caught:
        open_checkpoint(tmp_path)
    for part in (
        str(tmp_path / "config.json"),
        "architectures has 'Int8OPTForCausalLM'",
        "use a W8A8 checkpoint in compressed-tensors format",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("names", [None, "Int8", 7, [7], ["LlamaForCausalLM"], []])
def test_other_architectures_pass(names):
    assert refuse_smoothquant("config.json", {"architectures": names}) is None  # type: ignore
