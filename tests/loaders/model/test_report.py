"""The load report: an entry for each weight, of quantized modules too, and everything once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from loader_hf_files import TINY_SHAPES, file_bytes, header_of, tiny_folder

from halfbyte.cli.inspect import describe, render
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.hf import methods
from halfbyte.loaders.hf.methods.base import QuantizedModule
from halfbyte.loaders.hf.methods.detect import QuantizationConfig, claim
from halfbyte.loaders.model.report import LoadReport

Q = "model.layers.0.self_attn.q_proj"
CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 8, "sym": True, "desc_act": False}


class OneModule:
    """A method that finds one module, of two tensors."""

    name = "gptq"

    def modules(self, tensors):
        parts = {end: tensors.stored[f"{Q}.{end}"] for end in ("qweight", "scales")}
        shape = tensors.shapes[f"{Q}.weight"]
        return [QuantizedModule(Q, shape, "GPTQ 4-bit g8 sym", parts, checks=("zeros as v1",))]

    def load(self, module, read):
        raise AssertionError("inspect loads no weights")


@pytest.fixture
def quantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny llama with q_proj [8, 8] in 32 + 16 bytes."""
    shapes = {k: v for k, v in TINY_SHAPES.items() if k != f"{Q}.weight"}
    header = header_of(shapes)
    at = max(entry["data_offsets"][1] for entry in header.values())
    header[f"{Q}.qweight"] = {"dtype": "I32", "shape": [1, 8], "data_offsets": [at, at + 32]}
    header[f"{Q}.scales"] = {"dtype": "F16", "shape": [1, 8], "data_offsets": [at + 32, at + 48]}
    folder = tiny_folder(tmp_path / "m", {"quantization_config": CONFIG})
    data = bytearray(at + 48)
    start, stop = header["lm_head.weight"]["data_offsets"]
    data[start:stop] = b"\x3c" * (stop - start)  # not the embedding matrix
    (folder / "model.safetensors").write_bytes(file_bytes(json.dumps(header), bytes(data)))
    monkeypatch.setattr(methods, "open_method", lambda *args: OneModule())
    return folder


def test_every_weight_has_an_entry(quantized):
    report = open_checkpoint(quantized).report()
    assert set(report.tensors) == set(TINY_SHAPES)
    entry = report.tensors[f"{Q}.weight"]
    assert (entry.claim, entry.format) == ("gptq, 4 bits, group 8, sym", "GPTQ 4-bit g8 sym")
    assert entry.checks == ("shape [8, 8]", "zeros as v1")
    dense = report.tensors["model.norm.weight"]
    assert (dense.claim, dense.format, dense.checks) == ("float16", "F16", ("shape [8]",))


def test_inspect_counts_weights_not_tensors(quantized):
    facts = describe(open_checkpoint(quantized))
    (tensor,) = [t for t in facts["tensors"] if t["format"].startswith("GPTQ")]
    # 64 weights in 48 bytes, whatever number of tensors holds them.
    assert (tensor["params"], tensor["bytes"], tensor["bits_per_weight"]) == (64, 48, 6.0)
    assert facts["modules"]["GPTQ 4-bit g8 sym"]["q_proj"]["params"] == 64
    assert facts["params"] == sum(n * k for n, k in _two(TINY_SHAPES.values()))
    text = " ".join(render(facts, verbose=True).split())  # lines are wrapped
    assert "q_proj" in text and "config: gptq, 4 bits, group 8, sym; shape [8, 8]" in text
    facts["formats"] = {"x" * 99: next(iter(facts["formats"].values()))}
    facts["modules"] = {"x" * 99: {"y" * 99: next(iter(facts["formats"].values()))}}
    assert max(map(len, render(facts, verbose=False).splitlines()[-3:])) <= 80


def _two(shapes: Any) -> list[tuple[int, int]]:
    return [(s[0], s[1] if len(s) > 1 else 1) for s in shapes]


@pytest.mark.parametrize(
    "values,text",
    [
        (CONFIG, "gptq, 4 bits, group 8, sym"),
        ({"bits": 3, "group_size": -1, "sym": False, "desc_act": True}, None),
        ({"w_bit": 4, "q_group_size": 64, "zero_point": True}, "gptq, 4 bits, group 64, asym"),
        ({"load_in_4bit": False, "load_in_8bit": True}, "gptq, 8 bits"),
        ({"config_groups": {"a": {}, "b": {}}}, "gptq, 2 config_groups"),
        (
            {"config_groups": {"a": {"weights": {"num_bits": 8, "symmetric": True}}}},
            "gptq, 8 bits, sym",
        ),
        ({"config_groups": {"a": 3}, "bits": 4}, "gptq"),
        ({"bits": [4], "sym": "yes", "desc_act": 1, "group_size": 1e400}, "gptq"),
        ({"bits": "\x1b[2J"}, "gptq, \\x1b[2J bits"),
    ],
)
def test_what_a_config_says_in_a_line(values, text):
    text = text or "gptq, 3 bits, group -1, asym, desc_act"
    assert claim(QuantizationConfig("config.json", "gptq", values)) == text


def test_decisions_and_warnings_are_kept_once():
    report = LoadReport("gguf")
    for _ in range(3):
        report.decide("a")
        report.warn("b")
    assert (report.decisions, report.warnings) == (["a"], ["b"])
