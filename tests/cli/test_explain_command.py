"""``halfbyte explain`` and ``halfbyte tune`` as commands."""

from __future__ import annotations

import json

import pytest
import torch
from cli_support import ROOT, TINY, run_here

from halfbyte.cli.explain import config_text, gpu_text, layer_text, render
from halfbyte.engine.advise.explain_triton import explain
from halfbyte.kernels.device.gpus import gpu
from halfbyte.loaders import open_checkpoint

FOLDER = ROOT / "tests" / "fixtures" / "fp16-llama-spm"


@pytest.mark.parametrize("path", [TINY, FOLDER], ids=["gguf", "folder"])
@pytest.mark.parametrize("name", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_the_text_fits_80_columns(path, name):
    device = gpu(name)
    rows = explain(open_checkpoint(path), device)
    text = render(rows, gpu_text(device))
    assert max(map(len, text.splitlines())) <= 80
    assert f"{device.name}: {name}, {device.sms} multiprocessors" in text
    assert "layers 0-1: q_proj + k_proj + v_proj, 384 x 128" in text
    assert all(row.module in " ".join(text.split()) for row in rows)
    assert text.count("not ") >= 5


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ((), "head"),
        ((7,), "layer 7"),
        (tuple(range(30)), "layers 0-29"),
        ((0, 1, 4), "layers 0-1, 4"),
    ],
)
def test_layers_in_words(layers, text):
    assert layer_text(layers) == text


def test_configurations_in_words():
    config = {"bm": 8, "bn": 128, "warps": 1, "stages": 4, "splits": 1}
    assert config_text(config) == "tile 8 x 128, 1 warp, 4 stages, 1 split"
    assert config_text({"rows": 1}) == "row by row" and config_text({}) == ""


def test_json(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HALFBYTE_HOME", str(tmp_path))
    code = run_here("explain", str(TINY), "--device", "RTX 4090", "--json")
    out, err = capfd.readouterr()
    assert code == 0 and err == ""
    facts = json.loads(out)
    assert facts["device"] == {"name": "RTX 4090", "arch": 89, "sms": 128}
    assert facts["bits_per_weight"][-1]["format"] == "all"
    assert {"layers", "m", "kernel", "activations", "config", "source", "rejected"} <= set(
        facts["rows"][0]
    )


def test_on_a_cpu_with_what_the_engine_would_be_given(capsys):
    assert run_here("explain", str(TINY), "--device", "cpu", "--activations", "float") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Q4_0, blocks, float inputs" in out and "bits of a weight weights in the file" in out
    assert run_here("explain", str(TINY), "--device", "cpu", "--activations", "int8-token") == 0
    assert "int8-token" in capsys.readouterr().out
    assert run_here("explain", str(TINY), "--device", "cpu", "--activations", "int8") != 0
    assert "int8" in capsys.readouterr().err
    assert run_here("explain", str(TINY), "--device", "H100", "--activations", "int8-block32") == 1
    assert "'cuda_triton' does not round so" in capsys.readouterr().err


def test_wrong_names_and_tables_are_errors(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HALFBYTE_HOME", str(tmp_path))
    code = run_here("explain", str(TINY), "--device", "sm_1")
    out, err = capsys.readouterr()
    assert code == 1 and "unknown device 'sm_1'" in err
    assert "sm_90" in err and out == ""
    table = tmp_path / "tables" / "sm_90_132.json"
    table.parent.mkdir()
    table.write_text('{"schema": 2}')
    code = run_here("explain", str(TINY), "--device", "H100")
    assert code == 1 and str(table) in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="tunes where there is a GPU")
def test_tune_needs_a_gpu(capsys):
    code = run_here("tune", str(TINY))
    out, err = capsys.readouterr()
    assert code == 1 and out == ""
    assert err.startswith("error: ") and "GPU" in err
