"""Mutated Hugging Face folders: whatever is wrong with them, only our own errors come out."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from fuzz_support import two_lengths
from hypothesis import strategies as st
from loader_budget import anything, only_our_errors, use_folder
from loader_hf_files import TINY_CONFIG, tiny_folder

from halfbyte.loaders import open_checkpoint

FILES: dict[str, dict[str, Any]] = {
    "config": TINY_CONFIG
    | {
        "head_dim": 4,
        "rope_theta": 1e4,
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 32},
        "rope_parameters": {"rope_type": "default"},
        "sliding_window": 8,
        "use_sliding_window": True,
        "layer_types": ["full_attention"],
        "tie_word_embeddings": False,
        "attention_bias": False,
        "hidden_act": "silu",
        "dtype": "float16",
        "text_config": {},
        "quantization_config": None,
    },
    "generation_config": {"eos_token_id": [2, 3]},
    "tokenizer_config": {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "chat_template": [{"name": "default", "template": "x"}],
        "added_tokens_decoder": {"3": {"content": "<x>", "special": True}},
        "add_bos_token": True,
        "add_prefix_space": True,
    },
    "tokenizer": {
        "added_tokens": [{"id": 1, "content": "<s>", "special": True}],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
        },
        "model": {"type": "BPE", "vocab": {"</s>": 2}},
    },
    "special_tokens_map": {"unk_token": "<u>"},
    "added_tokens": {"<y>": 5},
}


@st.composite
def mutated_files(draw) -> dict[str, bytes]:
    """The sound files with one to three values replaced, and perhaps some bytes overwritten.

    NaN and infinities are written as Python does, which is no JSON and must be refused as such.
    """
    files = json.loads(json.dumps(FILES))
    for _ in range(draw(st.integers(1, 3))):
        place = files[draw(st.sampled_from(sorted(files)))]
        key = draw(st.sampled_from(sorted(place)))
        while isinstance(place[key], dict) and place[key] and draw(st.booleans()):
            place = place[key]
            key = draw(st.sampled_from(sorted(place)))
        place[key] = draw(anything)
    data = {stem: json.dumps(content).encode() for stem, content in files.items()}
    if draw(st.booleans()):
        stem = draw(st.sampled_from(sorted(data)))
        at = draw(st.integers(0, len(data[stem])))
        data[stem] = data[stem][:at] + draw(st.binary(max_size=4)) + data[stem][at + 2 :]
    return data


def check(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = tiny_folder(Path(name) / "m")
        for stem, content in files.items():
            (folder / f"{stem}.json").write_bytes(content)
        only_our_errors(lambda: use_folder(folder))


def test_the_sound_files_open():
    check({stem: json.dumps(content).encode() for stem, content in FILES.items()})
    with tempfile.TemporaryDirectory() as name:
        files: dict[str, Any] = {k: v for k, v in FILES.items() if k != "config"}
        folder = tiny_folder(Path(name) / "m", FILES["config"], None, "F16", **files)
        checkpoint = open_checkpoint(folder)
        assert checkpoint.tokenizer().eos_ids == (2, 3)
        checkpoint.close()


test_mutated_folders_raise_only_our_errors, test_mutated_folders_at_length = two_lengths(
    check, 300, mutated_files()
)
