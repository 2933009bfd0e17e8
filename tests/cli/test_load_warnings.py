"""What loading found odd reaches the user once, on stderr."""

from __future__ import annotations

import json
import shutil

from cli_support import ROOT, run_here

from halfbyte.cli.serve_table import ShownStart
from halfbyte.engine.engine import Engine


def odd_folder(place):
    """The tiny model with a config that names custom code."""
    folder = place / "m"
    shutil.copytree(ROOT / "tests" / "fixtures" / "fp16-llama-spm", folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "x.Y"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_warnings_are_printed_once(tmp_path, capfd):
    args = ("generate", "-m", str(odd_folder(tmp_path)), "--max-tokens", "1", "--raw", "a")
    code = run_here(*args)
    err = capfd.readouterr().err
    assert code == 0, err
    lines = [line for line in err.splitlines() if "auto_map" in line]
    assert len(lines) == 1 and lines[0].startswith("warning: auto_map in config.json is ignored")


def test_a_server_lists_them(tmp_path, capsys):
    with Engine(odd_folder(tmp_path), max_context=64, max_batch=1) as engine:
        ShownStart().loaded(engine.startup, engine.report.warnings)
    lines = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert len(lines) == 1 and "auto_map in config.json is ignored" in lines[0]
