"""Fixtures of the model store's tests."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
from store_support import PiecesOfModel, gguf_bytes, make_wheel

from halfbyte.errors import DownloadError
from halfbyte.loaders.store import download, sources, wheels


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HALFBYTE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def data() -> bytes:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    return gguf_bytes(3_000_000, seed)


@pytest.fixture
def pieces(tmp_path, monkeypatch, data):
    """A registered model in four pieces; a copy from the folder stands for pip, which is slow."""
    index = tmp_path / "index"
    index.mkdir()
    source = make_wheel(index, data, pieces=4)
    asked: list[str] = []

    def copy(requirement, folder, advance):
        asked.append(requirement)
        name = requirement.replace("-", "_").replace("==", "-") + "-py3-none-any.whl"
        if not (index / name).exists():
            raise DownloadError(f"pip could not download {requirement}")
        shutil.copy(index / name, folder)
        time.sleep(0.05)
        advance(download.folder_bytes(folder))

    monkeypatch.setattr(sources, "_REGISTERED", (source,))
    monkeypatch.setattr(wheels, "_run_pip", copy)
    return PiecesOfModel(source, asked)
