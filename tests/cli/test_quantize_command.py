"""``halfbyte quantize`` as a command; what it computes: tests/quantize."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from cli_support import ROOT, TINY, run_here

DENSE = ROOT / "tests" / "fixtures" / "fp16-llama-spm"
FEW = ("--samples", "3", "--length", "16")


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    words = [random.choice(("the", "quick", "brown", "fox", "jumps", "over")) for _ in range(400)]
    path.write_text(" ".join(words), encoding="utf-8")
    return str(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_that_runs_and_can_be_judged(text, tmp_path, capsys):
    out = tmp_path / "made"
    assert run_here("quantize", str(DENSE), str(out), "--calibration", text, *FEW) == 0
    assert "bits a weight" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    said = json.loads((out / "config.json").read_text())["quantization_config"]
    assert (said["quant_method"], said["bits"], said["sym"]) == ("gptq", 4, True)
    judge = ["accuracy", str(out), str(DENSE), "--text", text, "--length", "16", "--json", "-"]
    assert run_here(*judge) == 0
    assert 0 < json.loads(capsys.readouterr().out)["kl_mean"] < 2


def test_the_same_seed_gives_the_same_bytes(text, tmp_path):
    made = []
    for seed in ("3", "3", "4"):
        out = tmp_path / f"made-{len(made)}"
        command = ["quantize", str(DENSE), str(out), "--calibration", text, *FEW, "--seed", seed]
        assert run_here(*command) == 0
        made.append(contents(out))
    first, again, other = (
        {name: data for name, data in files.items() if name != "README.md"} for files in made
    )
    assert first == again
    assert first["model.safetensors"] != other["model.safetensors"]


def test_a_gguf_file_and_the_models_own_samples(tmp_path):
    out = tmp_path / "made.gguf"
    command = ["quantize", str(DENSE), str(out), "--format", "gguf:q4_0", *FEW]
    assert run_here(*command) == 0
    assert out.read_bytes()[:4] == b"GGUF"


def test_an_importance_matrix_serves_in_place_of_a_text(text, tmp_path, capsys):
    measured = tmp_path / "imatrix.gguf"
    assert run_here("imatrix", str(DENSE), str(measured), "--calibration", text, *FEW) == 0
    assert run_here("imatrix", str(DENSE), str(measured), "--calibration", text, *FEW) == 1
    assert "imatrix.gguf exists" in capsys.readouterr().err
    form = ["--method", "rtn", "--format", "gguf:q4_0"]
    files = []
    for options in (["--imatrix", str(measured)], []):
        files.append(tmp_path / f"made-{len(files)}.gguf")
        assert run_here("quantize", str(DENSE), str(files[-1]), *form, *options) == 0
    weighed, plain = (path.read_bytes() for path in files)
    assert len(weighed) == len(plain)
    assert weighed != plain
    both = ["--imatrix", str(measured), "--calibration", text]
    assert run_here("quantize", str(DENSE), str(tmp_path / "no.gguf"), *form, *both) == 1
    assert "--imatrix looks at no text" in capsys.readouterr().err


def test_lines_of_json_with_texts(tmp_path):
    lines = tmp_path / "lines.jsonl"
    lines.write_text("\n".join(json.dumps({"text": "over the lazy dog " * 9}) for _ in range(4)))
    command = ["quantize", str(DENSE), str(tmp_path / "made"), "--method", "awq"]
    assert run_here(*command, "--calibration", str(lines), *FEW) == 0


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--method", "gptq", "--scheme", "w4a16", "--bits", "3"], "--bits 3 contradicts"),
        (["--method", "awq", "--scheme", "w8a8"], "for weights alone"),
        (["--method", "smoothquant", "--scheme", "w4a16"], "w8a8 or fp8"),
        (["--method", "rtn", "--scheme", "w8a8", "--format", "gptq"], "compressed-tensors"),
        (["--method", "rtn", "--static"], "--static"),
        (["--method", "nf4", "--bits", "4"], "takes no --bits"),
        (["--method", "nf4", "--format", "gptq"], "written as bitsandbytes"),
        (["--format", "bitsandbytes"], "nf4, fp4 and llm-int8"),
        (["--format", "marlin"], "--format marlin; expected one of gptq"),
        (["--format", "gguf:q9"], "gguf:q9"),
        (["--format", "gguf:q4_0"], "makes a file, whose name ends in .gguf"),
        (["--format", "gguf:q4_0", "--bits", "4"], "has its own bits"),
        (["--bits", "9"], "--bits is 9"),
        (["--group", "3"], "--group is 3"),
        (["--group", "48", "--format", "compressed-tensors"], "in groups of 48"),
        (["--method", "lloyd-max"], "no file format holds"),
        (["--method", "llm-int8"], "--calibration is given, but --method llm-int8"),
        (["--imatrix", "x"], "--imatrix goes with --method rtn"),
        (["--samples", "0"], "samples is 0"),
        (["--samples", "900"], "at least 900 windows"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(options, names, text, tmp_path, capsys):
    out = tmp_path / "made"
    assert run_here("quantize", str(DENSE), str(out), "--calibration", text, *options) == 1
    assert names in capsys.readouterr().err
    assert not out.exists()
    assert not (tmp_path / "made.partial").exists()


def test_models_and_places_that_will_not_do(text, tmp_path, capsys):
    wanted = ["--calibration", text, *FEW]
    assert run_here("quantize", str(TINY), str(tmp_path / "made"), *wanted) == 1
    assert "quantized already" in capsys.readouterr().err
    assert run_here("quantize", str(DENSE), str(tmp_path), *wanted) == 1
    assert "exists" in capsys.readouterr().err
    for lines in ("[1]", "{", '{"messages": 3}', '{"txt": "a"}'):
        bad = tmp_path / "bad.jsonl"
        bad.write_text(lines)
        made = str(tmp_path / "made")
        assert run_here("quantize", str(DENSE), made, "--calibration", str(bad), *FEW) == 1
        assert "bad.jsonl, line 1" in capsys.readouterr().err
    assert run_here("quantize", str(DENSE), str(tmp_path / "no" / "way" / "made"), *wanted) == 0
