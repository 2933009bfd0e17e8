"""Mutated quantized folders of every tool: only our own errors, within time and memory.

Config values, header entries and data bytes are changed; then every weight is loaded.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fuzz_support import two_lengths
from hypothesis import strategies as st
from loader_budget import FIXTURES, anything, only_our_errors, places, use_folder

_WORDS = ["gptq", "awq", "gptq_v2", "gemm", "channel", "group", "tensor", "int", "float", "nf4"]


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


FOLDERS = sorted(
    folder.name for folder in FIXTURES.iterdir() if _config(folder).get("quantization_config")
)


@dataclass
class Case:
    """A fixture, what is changed in it, in words, and the changed files."""

    fixture: str
    edits: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict, repr=False)


@st.composite
def cases(draw) -> Case:
    """A fixture with changes in its quantization config, in a weights file, or in both."""
    name = draw(st.sampled_from(FOLDERS or ["fp16-llama-spm"]))
    case, folder = Case(name), FIXTURES / name
    if draw(st.integers(0, 2)):
        tree = _config(folder)
        inner = tree.get("quantization_config") or tree
        for _ in range(draw(st.integers(1, 3))):
            if not inner:
                break
            owner, key = draw(st.sampled_from(places(inner)))
            value = draw(st.one_of(anything, st.sampled_from(_WORDS), st.integers(0, 256)))
            if isinstance(owner, dict) and not draw(st.integers(0, 4)):
                del owner[key]
                case.edits.append(f"no {key}")
            else:
                owner[key] = value
                case.edits.append(f"{key} = {value!r}")
        case.files["config.json"] = json.dumps(tree).encode()
    if not case.files or draw(st.booleans()):
        path = draw(st.sampled_from(sorted(folder.glob("model*.safetensors"))))
        case.files[path.name] = draw(damaged(path.read_bytes(), case.edits))
    return case


@st.composite
def damaged(draw, data: bytes, edits: list[str]) -> bytes:
    """A safetensors file with entries of its header, or bytes of its data, changed."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    names = sorted(name for name in header if name != "__metadata__")
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(names))
        entry = header.get(name)
        if not entry or not {"dtype", "shape"} <= set(entry):
            continue
        kind = draw(st.integers(0, 3))
        if kind == 0:
            # Other shape of the same size, so that the container is sound.
            shape = entry["shape"] if isinstance(entry["shape"], list) else []
            entry["shape"] = draw(st.sampled_from([shape[::-1], [1, *shape]]))
        elif kind == 1:
            pairs = {"F16": "BF16", "BF16": "F16", "I32": "F32", "F32": "I32", "U8": "I8"}
            entry["dtype"] = pairs.get(str(entry["dtype"]), "F16")
        elif kind == 2:
            header[draw(st.sampled_from([name + "x", "lm_head.qweight", "x"]))] = header.pop(name)
        else:
            owner, key = draw(st.sampled_from(places(entry)))
            owner[key] = draw(anything)
        edits.append(f"{name}: {header.get(name, 'renamed')}")
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(names))
        offsets = header.get(name, {}).get("data_offsets")
        if isinstance(offsets, list) and all(type(x) is int for x in offsets) and len(offsets) == 2:
            at = min(max(offsets[0], 0), len(body))
            new = draw(st.sampled_from([b"\xff" * 64, b"\0" * 64, b"\x00\x7c" * 8, b"\x80" * 8]))
            body[at : at + len(new)] = new[: len(body) - at]
            edits.append(f"data of {name} starts with {new[:2]!r}")
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(body)


def check(case: Case) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "m"
        folder.mkdir()
        for path in (FIXTURES / case.fixture).iterdir():
            if path.name in case.files:
                (folder / path.name).write_bytes(case.files[path.name])
            elif not path.name.startswith("expected"):
                shutil.copyfile(path, folder / path.name)
        only_our_errors(lambda: use_folder(folder, load=True))


@pytest.mark.parametrize("name", FOLDERS)
def test_the_sound_folders_load(name):
    use_folder(FIXTURES / name, load=True)


test_mutated_quantized_folders, test_mutated_quantized_folders_at_length = two_lengths(
    check, 150, cases()
)
