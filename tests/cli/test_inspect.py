"""``halfbyte inspect``: facts from headers, checked against the file itself."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys

import pytest
import torch
from cli_support import ROOT, TINY, halfbyte

from halfbyte.cli.inspect import describe, render
from halfbyte.engine.models.decoder import block_states
from halfbyte.kernels.cpu.inputs import default_rule
from halfbyte.kernels.formats.weight_format import WeightFormat
from halfbyte.loaders import open_checkpoint

W4 = WeightFormat(4, 32)
FIXTURES = ROOT / "tests" / "fixtures"
FOLDER = FIXTURES / "fp16-llama-spm"


@pytest.mark.parametrize("path", [TINY, FOLDER], ids=["gguf", "folder"])
def test_facts_add_up(path):
    checkpoint = open_checkpoint(path)
    facts = describe(checkpoint)
    config = checkpoint.config
    tensors = facts["tensors"]
    assert {t["name"] for t in tensors} == {info.name for info in checkpoint.tensors()}
    assert facts["size"] == sum(t["bytes"] for t in tensors)
    assert facts["size"] < sum(facts["files"].values())
    assert facts["params"] == sum(entry["params"] for entry in facts["formats"].values())
    assert sum(e["tensors"] for e in facts["formats"].values()) == len(tensors)
    assert facts["bits_per_weight"] == round(8 * facts["size"] / facts["params"], 3)
    for name, size in facts["kv_bytes_per_token"].items():
        dtype = getattr(torch, name)
        assert size == sum(spec.token_bytes(dtype) for spec in block_states(config))
    embedding = next(t for t in tensors if t["name"] == "model.embed_tokens.weight")
    assert embedding["shape"] == [config.vocab_size, config.hidden_size]
    json.dumps(facts)


def test_bits_of_known_formats():
    facts = describe(open_checkpoint(TINY))
    bits = {name: entry["bits_per_weight"] for name, entry in facts["formats"].items()}
    # A block of 32 weights: 16 bytes of codes and an fp16 scale; 32 bytes and a scale.
    assert bits["Q4_0"] == 4.5 and bits["Q8_0"] == 8.5 and bits["F32"] == 32.0
    assert facts["architecture"] == "llama" and facts["tokenizer"]["kind"] == "gguf_spm"


@pytest.mark.parametrize("name", sorted(p.name for p in FIXTURES.iterdir() if p.is_dir()))
def test_the_text_fits_80_columns(name):
    gguf = sorted((FIXTURES / name).glob("*.gguf"))
    facts = describe(open_checkpoint(gguf[0] if gguf else FIXTURES / name))
    facts["path"] = "model.gguf"
    facts["warnings"] = ["a \x1b[2J word " * 30]
    for verbose in (False, True):
        text = render(facts, verbose=verbose)
        assert max(map(len, text.splitlines())) <= 80 and "\x1b" not in text
        # Formats are never cut.
        assert all(label in text for label in facts["formats"])
    assert all(t["name"] in text for t in facts["tensors"])


def test_how_inputs_are_rounded():
    facts = describe(open_checkpoint(FIXTURES / "ct-mixed-w4a16-w8a8-phi3"))
    said = {(t["format"], t["activations"]) for t in facts["tensors"]}
    own = "8-bit channel sym, inputs int8 per token"
    assert (own, "int8-token") in said and ("4-bit g32 sym", default_rule(W4)) in said
    assert {how for label, how in said if label == "BF16"} == {"float", None}
    assert f"int8-token ({own})" in " ".join(render(facts, verbose=False).split())


@pytest.mark.parametrize("names", [("default", "tool_use"), ("rag", "tool_use")])
def test_chat_templates_by_name(tmp_path, names):
    folder = shutil.copytree(FOLDER, tmp_path / "m")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": name, "template": "{{ messages }}"} for name in names]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    facts = describe(open_checkpoint(folder))
    assert facts["tokenizer"]["chat_template"] is ("default" in names)
    text = render(facts, verbose=False)
    said = "yes; by name: tool_use" if "default" in names else "none; by name: rag, tool_use"
    assert f"chat template   {said}\n" in text


def test_the_program():
    done = halfbyte("inspect", str(FOLDER), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "safetensors" and done.stderr == ""


def test_neither_torch_nor_model_code_is_imported():
    """Of the engine only the table of sampling fields, from which options are made."""
    code = (
        "import sys\nfrom halfbyte.cli.main import main\n"
        f"try:\n    main(['inspect', {str(TINY)!r}])\n"
        "finally:\n    print([m for m in sys.modules if m.startswith(('torch','halfbyte.engine'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(ast.literal_eval(done.stdout.splitlines()[-1]))
    assert imported == {"halfbyte.engine", "halfbyte.engine.params", "halfbyte.engine.param_table"}
