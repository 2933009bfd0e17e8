"""Choosing the loader: files, folders, pickles, and things that are no models."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from loader_gguf_files import refuses, tiny_gguf, write
from loader_hf_files import tiny_folder

from halfbyte.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.files.json_text import parse_object


def test_a_file_and_a_folder_with_one_gguf(tmp_path):
    path = write(tmp_path / "m.gguf", tiny_gguf())
    for given in (path, tmp_path, str(tmp_path)):
        checkpoint = open_checkpoint(Path(given))
        assert checkpoint.kind == "gguf"
        checkpoint.close()


def test_the_name_of_a_gguf_file_does_not_matter(tmp_path):
    checkpoint = open_checkpoint(write(tmp_path / "sha256-abc", tiny_gguf()))
    assert checkpoint.kind == "gguf"
    checkpoint.close()


def test_config_and_safetensors_win_over_a_gguf(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    write(folder / "m.gguf", tiny_gguf())
    checkpoint = open_checkpoint(folder)
    assert checkpoint.kind == "safetensors"
    checkpoint.close()


def test_several_ggufs_are_listed(tmp_path):
    for name in ("q4.gguf", "q8.gguf"):
        write(tmp_path / name, tiny_gguf())
    refuses(
        lambda: open_checkpoint(tmp_path),
        CheckpointError,
        r"holds 2 GGUF files \(q4\.gguf, q8\.gguf\)",
        "give the path of one of them",
    )


def test_a_gguf_that_is_a_link_out_of_the_folder(tmp_path):
    write(tmp_path / "real.gguf", tiny_gguf())
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "m.gguf").symlink_to("../real.gguf")
    refuses(lambda: open_checkpoint(tmp_path / "m"), CheckpointError, "outside the model folder")


class Bomb:
    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.ckpt", "consolidated.pth"])
def test_pickles_are_never_opened(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = tiny_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    for given in (folder, folder / name):
        refuses(
            lambda given=given: open_checkpoint(given),
            UnsupportedModelError,
            f"stored as pickle \\({name}\\)",
            "convert to safetensors",
        )
    assert not (tmp_path / "ran").exists()


def test_things_that_are_no_models(tmp_path):
    refuses(lambda: open_checkpoint(tmp_path / "no"), ModelNotFoundError, "no model at .*no")
    refuses(lambda: open_checkpoint(tmp_path), ModelNotFoundError, "holds no model: expected conf")
    refuses(lambda: open_checkpoint(Path("a\0b")), ModelNotFoundError, r"a\\x00b")
    refuses(lambda: open_checkpoint(Path("x" * 5000)), ModelNotFoundError, "xxx")
    page = write(tmp_path / "page.gguf", b"<!DOCTYPE html><html>")
    refuses(lambda: open_checkpoint(page), CheckpointError, r"starts with b'<!DO'")
    folder = tiny_folder(tmp_path / "m")
    refuses(
        lambda: open_checkpoint(folder / "model.safetensors"),
        CheckpointError,
        "one weights file without its config.json",
    )
    (folder / "config.json").unlink()
    refuses(lambda: open_checkpoint(folder), CheckpointError, "holds safetensors but no config")


def test_importing_the_package_loads_no_torch():
    code = "import sys, halfbyte.loaders; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_json_depth_is_limited():
    def nested(levels: int) -> bytes:
        return b'{"a":' * (levels - 1) + b"{}" + b"}" * (levels - 1)

    assert parse_object(nested(64), "x", max_bytes=1000)
    refuses(
        lambda: parse_object(nested(65), "x", max_bytes=1000),
        CheckpointError,
        "x: JSON is nested over 64 levels deep",
    )
    refuses(
        lambda: parse_object(b"{}", "x", max_bytes=1), CheckpointError, "x: 2 bytes of JSON; at mo"
    )
