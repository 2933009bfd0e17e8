"""What is in the store: found by many spellings, listed, removed."""

from __future__ import annotations

import pytest
from store_support import leftovers, put

from halfbyte.errors import DownloadError, ModelNotFoundError
from halfbyte.loaders.store import wheels
from halfbyte.loaders.store.model_store import (
    ensure_model,
    is_pulled,
    pull_model,
    pulled,
    remove,
    resolve_model,
)


def test_what_was_pulled_is_listed_and_removed(home, pieces):
    assert pulled() == []
    with pytest.raises(ModelNotFoundError, match=r"'tiny' was not pulled.*in the store: nothing"):
        remove("tiny")
    pull_model("tiny")
    put(home, "Owner/Name:Q4_K_M", {"m-Q4_K_M.gguf": b"GGUF1"})
    put(home, "Owner/Name", {"config.json": b"{}", "model.safetensors": b"12345678"})
    put(home, "https://example.org/a/m.gguf", {"m.gguf": b"GGUF"})
    found = {model.name: model for model in pulled()}
    assert list(found) == [
        "https://example.org/a/m.gguf",
        "Owner/Name",
        "Owner/Name:Q4_K_M",
        "tiny",
    ]
    assert all(model.complete for model in found.values())
    tiny = found["tiny"]
    assert (tiny.licence, tiny.path) == ("MIT", home / "models/tiny/tiny.gguf")
    assert tiny.source == "packages tiny-model-part1 to tiny-model-part4==1.0"
    assert 0 < tiny.bytes - pieces.source.size < 1000  # the marker
    assert found["Owner/Name"].path.is_dir() and found["Owner/Name"].licence is None
    assert found["Owner/Name:Q4_K_M"].source == "hub repository Owner/Name"

    with pytest.raises(ModelNotFoundError, match="did you mean Owner/Name"):
        remove("Owner/Nam")
    assert remove("owner/name:q4_k_m") == found["Owner/Name:Q4_K_M"].bytes
    assert remove("TINY") == tiny.bytes
    assert remove("https://example.org/a/m.gguf") > 0
    assert [model.name for model in pulled()] == ["Owner/Name"]
    assert remove("Owner/Name") > 0
    assert leftovers(home) == []


def test_a_damaged_model_is_listed_and_can_be_removed(home, pieces):
    path = pull_model("tiny")
    path.unlink()
    (model,) = pulled()
    assert not model.complete and model.path == path.parent
    marker = path.parent / ".halfbyte.json"
    marker.write_text("nonsense")
    (model,) = pulled()
    assert (model.name, model.source, model.complete) == ("tiny", "unknown", False)
    assert remove("tiny") == len("nonsense")
    assert leftovers(home) == []


def test_the_parts_of_an_interrupted_pull_are_removed_unless_it_runs(home, pieces, tmp_path):
    (tmp_path / "index" / "tiny_model_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(DownloadError):
        pull_model("tiny")
    path = home / "models" / ".tmp" / "part-tiny"
    with (
        wheels.joined_parts(pieces.source, path, lambda done, total: None),
        pytest.raises(DownloadError, match="being pulled by another process"),
    ):
        remove("tiny")
    assert remove("tiny") == pieces.source.pieces[0].size
    assert leftovers(home) == []


def test_a_local_path_is_not_removed(home, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match=r"is a local path.*delete it yourself"):
        remove(str(tmp_path / "m.gguf"))
    assert (tmp_path / "m.gguf").exists()


def test_names_are_found_in_any_case_and_by_the_addresses_of_the_hub(home, pieces):
    path = pull_model("TINY")
    assert resolve_model("Tiny") == path and is_pulled("tINY") and ensure_model("TiNy") == path
    put(home, "Owner/Name-GGUF:Q4_K_M", {"Name-Q4_K_M.gguf": b"GGUF"})
    model = home / "models/hub/Owner/Name-GGUF/pick-Q4_K_M/Name-Q4_K_M.gguf"
    for name in (
        "Owner/Name-GGUF:Q4_K_M",
        "owner/name-gguf:q4_k_m",
        "hf.co/Owner/Name-GGUF:Q4_K_M",
        "HF.co/owner/name-gguf:q4_k_m",
        "https://huggingface.co/Owner/Name-GGUF:Q4_K_M",
        "Owner/Name-GGUF/Name-Q4_K_M.gguf",
        "https://huggingface.co/Owner/Name-GGUF/resolve/main/Name-Q4_K_M.gguf?download=true",
        "https://huggingface.co/Owner/Name-GGUF/blob/main/Name-Q4_K_M.gguf",
    ):
        assert resolve_model(name) == model and is_pulled(name), name
        assert pull_model(name) == model, name
    with pytest.raises(ModelNotFoundError, match="Owner/Name-GGUF:Q4_K_M was"):
        resolve_model("https://hf.co/owner/name-gguf/tree/main")
    with pytest.raises(ModelNotFoundError, match="Owner/Name-GGUF:Q4_K_M was"):
        resolve_model("Owner/Name-GGUF:Q8_0")


def test_a_selector_picks_the_one_file_of_a_pulled_repository(home):
    names = ("m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-Q8_0.gguf", "n-Q8_0.gguf")
    put(home, "o/many", {name: b"GGUF" for name in names})
    parts = [f"s-Q4_0-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    put(home, "o/split", {name: b"GGUF" for name in parts})
    assert resolve_model("o/many:q4_k_m").name == "m-Q4_K_M.gguf"
    assert resolve_model("o/many/n-Q8_0.gguf").name == "n-Q8_0.gguf"
    assert resolve_model("o/split:Q4_0").name == parts[0]
    with pytest.raises(ModelNotFoundError, match=r"several files.*m-Q8_0\.gguf, n-Q8_0\.gguf"):
        resolve_model("o/many:Q8_0")
    with pytest.raises(ModelNotFoundError, match="o/many was"):
        resolve_model("o/many:Q4_K")
