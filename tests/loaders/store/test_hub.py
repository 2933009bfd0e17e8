"""Which files of a repository are taken."""

from __future__ import annotations

import pytest

from halfbyte.errors import DownloadError
from halfbyte.loaders.store.hub import HubFile, choose_files
from halfbyte.loaders.store.sources import HubSource, parse_source


def choose(name: str, *paths: str) -> list[str]:
    source = parse_source(name)
    assert isinstance(source, HubSource)
    return [f.path for f in choose_files(source, [HubFile(path, 1, "") for path in paths])]


def test_safetensors_with_their_configuration_only():
    taken = ("config.json", "tokenizer.model", "merges.txt", "a.safetensors", "b.jinja")
    left = (
        "x.py",
        "x.bin",
        "x.pt",
        "README.md",
        "consolidated.safetensors",
        "onnx/model.safetensors",
        ".hidden.json",
        "../up.json",
        "a b.json",
        "x.gguf",
    )
    assert choose("o/n", *taken, *left) == list(taken)


def test_a_single_gguf_is_taken():
    assert choose("o/n", "config.json", "m.gguf", "mmproj-m.gguf") == ["m.gguf"]


@pytest.mark.parametrize(
    ("pick", "file"),
    [("Q4_K_M", "m-Q4_K_M.gguf"), ("q4_k_s", "m-Q4_K_S.gguf"), ("Q4_XS", "m.Q4_XS.gguf")],
)
def test_a_tag_selects_whole_words(pick, file):
    files = ("m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m.IQ4_XS.gguf", "m.Q4_XS.gguf")
    assert choose(f"o/n:{pick}", *files) == [file]


def test_a_path_selects_one_file():
    assert choose("o/n/sub/m.gguf", "m.gguf", "sub/m.gguf") == ["sub/m.gguf"]


@pytest.mark.parametrize("name", ["o/n:Q4_0", "o/n/q/m-Q4_0-00002-of-00003.gguf"])
def test_all_parts_of_a_split_file_are_taken(name):
    parts = [f"q/m-Q4_0-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    others = ["q/m-Q8_0-00001-of-00002.gguf", "q/m-Q8_0-00002-of-00002.gguf", "m.gguf"]
    assert choose(name, *reversed(parts), *others) == parts
    assert choose("o/n", *reversed(parts)) == parts


@pytest.mark.parametrize(
    ("name", "files", "says"),
    [
        ("o/n", ["a.gguf", "b.gguf"], "several GGUF files of o/n: a.gguf, b.gguf.*o/n/a.gguf"),
        ("o/n:Q4", ["m-Q4_0.gguf"], "matches no GGUF file of o/n: m-Q4_0.gguf"),
        ("o/n:Q4_0", ["a-Q4_0.gguf", "b-Q4_0.gguf"], "matches several"),
        ("o/n/x.gguf", ["a.gguf"], "matches no GGUF file"),
        ("o/n:Q4_0", ["config.json"], "holds no GGUF file"),
        ("o/n", ["pytorch_model.bin"], "only pickles, which are never loaded"),
        ("o/n", ["README.md"], "neither safetensors nor GGUF"),
        ("o/n", ["m-00001-of-00002.gguf"], "o/n holds 1 of the 2 parts of m.gguf"),
        ("o/n:Q4_0", ["m-Q4_0-00002-of-00003.gguf", "m-Q4_0-00003-of-00003.gguf"], "2 of the 3"),
        ("o/n", ["a-00001-of-00001.gguf", "b-00001-of-00001.gguf"], "several GGUF files"),
        ("o/n:Q4_0", ["m-Q4_0-00001-of-00001.gguf", "m-Q4_0.gguf"], "several GGUF files"),
    ],
)
def test_no_clear_choice_is_an_error(name, files, says):
    with pytest.raises(DownloadError, match=says):
        choose(name, *files)
