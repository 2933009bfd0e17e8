"""``list``, ``show`` and ``rm`` on a store with one model in it."""

from __future__ import annotations

import json
import shutil

import pytest
from cli_support import TINY

from halfbyte.cli.main import app
from halfbyte.errors import ModelNotFoundError
from halfbyte.loaders.store import model_store as store
from halfbyte.loaders.store.download import FileRecord, hash_file


@pytest.fixture
def pulled(tmp_path, monkeypatch):
    """A store that holds ``owner/Tiny:Q4_0``, put there as ``pull`` does it."""
    monkeypatch.setenv("HALFBYTE_HOME", str(tmp_path))

    def fetch(source, work, stage, progress) -> dict[str, FileRecord]:
        target = stage / "tiny.Q4_0.gguf"
        shutil.copyfile(TINY, target)
        return {target.name: hash_file(target, lambda done: None)}

    monkeypatch.setattr(store, "fetch_hub", fetch)
    return store.pull_model("owner/Tiny:Q4_0")


def run(capsys, *args: str) -> tuple[str, str]:
    assert not app(list(args), standalone_mode=False)
    return capsys.readouterr()


def test_list_and_remove(pulled, capsys):
    out, err = run(capsys, "list")
    head, line = out.splitlines()
    assert head.split() == ["model", "size", "licence"] and line.startswith("owner/Tiny:Q4_0 ")
    assert "halfbyte pull NAME" in err and "smollm2" in err
    (facts,) = json.loads(run(capsys, "list", "--json")[0])
    assert facts["path"] == str(pulled) and facts["bytes"] >= TINY.stat().st_size
    # In any case, and as the hub's site writes it.
    out, _ = run(capsys, "rm", "hf.co/Owner/tiny:q4_0")
    assert out.startswith("hf.co/Owner/tiny:q4_0 removed, ") and not pulled.exists()
    assert run(capsys, "list")[0] == ""
    with pytest.raises(ModelNotFoundError, match="owner/Tiny"):
        app(["rm", "owner/Tiny:Q4_0"], standalone_mode=False)


def test_a_damaged_model_is_shown_as_one(pulled, capsys):
    pulled.write_bytes(b"cut")
    assert "damaged: pull again" in run(capsys, "list")[0]


def test_show_is_short_and_says_the_name_that_was_asked_for(pulled, capsys):
    out, _ = run(capsys, "show", "owner/Tiny:Q4_0")
    assert len(out.splitlines()) <= 12
    assert out.startswith("model           owner/Tiny:Q4_0\n")
    assert "architecture    llama" in out and f"{pulled}" in "".join(out.split())
    facts = json.loads(run(capsys, "show", "owner/Tiny:Q4_0", "--json")[0])
    assert facts["model"] == "owner/Tiny:Q4_0" and facts["params"] > 0
    assert json.loads(run(capsys, "show", str(TINY), "--json")[0])["path"] == str(TINY)
