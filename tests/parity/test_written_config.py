"""``config.json`` built for models of GGUF files: what it says is the model, of every family."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_models import BASE, CASES, CLASSES
from transformers import AutoConfig

from halfbyte.errors import QuantizeError
from halfbyte.loaders.files.fields import Fields
from halfbyte.loaders.hf.config import read_config
from halfbyte.loaders.model.config import ModelConfig
from halfbyte.loaders.model.report import LoadReport
from halfbyte.quantize.write.check import model_facts
from halfbyte.quantize.write.model_config import config_values


def read(values: dict[str, Any]) -> ModelConfig:
    generation = Fields("generation_config.json", {})
    return read_config("config.json", values, generation, "tiny", "float32", LoadReport("x"))


# Those whose layers keep states are not written: `halfbyte quantize` refuses them.
WRITTEN = [name for name in CASES if CASES[name][0] not in ("qwen3_next", "qwen3_5")]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_built_config_says_the_model(name: str, tmp_path: Any) -> None:
    kind, values = CASES[name]
    config = read(CLASSES[kind][0](**{**BASE, **values}).to_dict())
    model: Any = SimpleNamespace(kind="gguf", config=config, path=tmp_path / "model.gguf")
    if config.rope.kind == "dynamic":
        # No GGUF file has it, and its context is written scaled.
        with pytest.raises(QuantizeError, match="dynamic"):
            config_values(model, "float16", [])
        return
    built = config_values(model, "float16", [])
    assert model_facts(read(built)) == model_facts(config)
    (tmp_path / "config.json").write_text(json.dumps(built))
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert type(theirs) is CLASSES[kind][0]
    # transformers' own reading of it, written out, is the same model again.
    assert model_facts(read(theirs.to_dict())) == model_facts(config)
