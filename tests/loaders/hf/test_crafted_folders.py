"""Attacks on model folders, each refused with a message of its own, soon and in little memory.

Crafted containers are in test_safetensors_index and test_safetensors_fuzz, templates in
tests/engine/text/test_chat_template.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from loader_budget import only_our_errors, use_folder
from loader_hf_files import TINY_CONFIG, TINY_SHAPES, file_bytes, safetensors, tiny_folder

from halfbyte.errors import CheckpointError, HalfbyteError, UnsupportedModelError

TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
SHARD = "model-00001-of-00001.safetensors"


def refused(folder: Path, kind: type[HalfbyteError], *words: str) -> None:
    """Opening fails within the budget, with that kind of error and all these words."""
    error = only_our_errors(lambda: use_folder(folder))
    assert isinstance(error, kind), error
    assert all(word in str(error) for word in words), str(error)


AUDITED = """
import json, sys, pathlib
folder = pathlib.Path(sys.argv[1])
from halfbyte.loaders import open_checkpoint
import torch, halfbyte.kernels.formats.canonical
before = set(sys.modules)
events = []
def hook(event, args):
    if event == "open" and str(args[0]).startswith(str(folder)):
        events.append(("open", pathlib.Path(str(args[0])).name))
    if event in ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.fork"):
        events.append((event, str(args)))
    if event == "socket.connect":
        events.append((event, str(args)))
sys.path.insert(0, "")
sys.addaudithook(hook)
checkpoint = open_checkpoint(folder)
checkpoint.tokenizer()
for info in checkpoint.tensors():
    checkpoint.load(info.name)
checkpoint.close()
inside = [m.__file__ for m in sys.modules.values() if (getattr(m, "__file__", "") or "")
          .startswith(str(folder))]
assert not inside, inside
print(json.dumps(events))
"""


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self):
        return (open, (self.mark, "w"))


def test_a_booby_trapped_folder_is_only_read(tmp_path):
    mark = tmp_path / "ran"
    config = {
        "auto_map": {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"},
        "custom_pipelines": {"x": {"impl": "pipe.X"}},
    }
    settings = {"auto_map": {"AutoTokenizer": ["tok.X", None]}, "tokenizer_class": "X"}
    settings["chat_template"] = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    folder = tiny_folder(tmp_path / "m", config, tokenizer=TOKENIZER, tokenizer_config=settings)
    code = f"open({str(mark)!r}, 'w')\n"
    scripts = ("configuration_x", "modeling_x", "tok", "pipe", "torch", "json", "sitecustomize")
    for name in scripts:
        (folder / f"{name}.py").write_text(code)
    (folder / "conftest.py").write_text(code)
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt", "scheduler.pkl"):
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, str(folder)],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    events = json.loads(done.stdout)
    assert events and {kind for kind, _ in events} == {"open"}
    opened = {name for _, name in events}
    assert not [name for name in opened if not name.endswith((".json", ".safetensors", ".jinja"))]
    assert not mark.exists()


def test_the_template_of_a_folder_is_no_code(tmp_path):
    from halfbyte.engine.text.chat_template import ChatTemplate
    from halfbyte.errors import TemplateError
    from halfbyte.loaders import open_checkpoint

    evil = "{{ cycler.__init__.__globals__.os.system('touch ran') }}"
    folder = tiny_folder(tmp_path / "m", tokenizer=TOKENIZER)
    (folder / "chat_template.jinja").write_text(evil)
    checkpoint = open_checkpoint(folder)
    source = checkpoint.tokenizer()
    checkpoint.close()
    assert source.chat_template == evil
    template = ChatTemplate(source.chat_template, source.chat_templates, source.special_map)
    with pytest.raises(TemplateError):
        template.render([{"role": "user", "content": "hi"}], {})


JSON_ATTACKS: dict[str, tuple[bytes, str]] = {
    "NaN": (b'{"rope_theta": NaN}', "NaN is not a JSON number"),
    "Infinity": (b'{"rope_theta": Infinity}', "Infinity is not a JSON number"),
    "-Infinity": (b'{"rope_theta": -Infinity}', "-Infinity is not a JSON number"),
    "1e999": (b'{"rope_theta": 1e999}', "the number 1e999 overflows"),
    "digits": (b'{"vocab_size": ' + b"9" * 100_000 + b"}", "a whole number has 100000 digits"),
    "depth": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested over 64 levels deep"),
    "lists": (b'{"a":' + b"[" * 70 + b"]" * 70 + b"}", "nested over 64 levels deep"),
    "brackets": (b'{"a":[' + b"[]," * 300_000 + b"[]]}", "600003 values in JSON"),
    "bytes": (b'{"a":"' + b"x" * (5 << 20) + b'"}', "bytes; expected at most 4194304"),
    "twice": (b'{"vocab_size": 6, "vocab_size": 7}', "duplicate key 'vocab_size'"),
    "a list": (b"[]", "the top of the JSON is not an object"),
    "null": (b"null", "the top of the JSON is not an object"),
    "empty": (b"", "not valid JSON"),
    "bytes that are no text": (b'{"a": "\xff\xfe"}', "not UTF-8 at byte 7"),
    "half a surrogate": (rb'{"model_type": "\ud800"}', "holds half a surrogate pair"),
    "a pickle": (pickle.dumps({"model_type": "llama"}), "config.json: not "),
}


@pytest.mark.parametrize("name", JSON_ATTACKS)
def test_json_attacks(tmp_path, name):
    data, words = JSON_ATTACKS[name]
    folder = tiny_folder(tmp_path / "m")
    (folder / "config.json").write_bytes(data)
    refused(folder, CheckpointError, "config.json", words)


@pytest.mark.parametrize("file", ["generation_config", "tokenizer_config", "quantize_config"])
def test_json_attacks_on_side_files(tmp_path, file):
    for name in ("depth", "digits", "NaN", "brackets"):
        data, words = JSON_ATTACKS[name]
        folder = tiny_folder(tmp_path / name, tokenizer=TOKENIZER)
        (folder / f"{file}.json").write_bytes(data)
        refused(folder, CheckpointError, f"{file}.json", words)


SIZES: dict[str, tuple[dict[str, Any], str]] = {
    "vocabulary": ({"vocab_size": 10**12}, "vocab_size is 1000000000000; expected a whole number"),
    "layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected a whole"),
    "width": ({"hidden_size": 1 << 40}, "hidden_size is 1099511627776; expected a whole number"),
    "heads": ({"num_attention_heads": 0}, "num_attention_heads is 0; expected a whole number"),
    "context": ({"max_position_embeddings": 1 << 62}, "max_position_embeddings is 46116860184"),
    "a float": ({"vocab_size": 6.0}, "vocab_size is 6.0; expected a whole number"),
    "a bool": ({"num_hidden_layers": True}, "num_hidden_layers is True; expected a whole"),
    "text": ({"hidden_size": "8"}, "hidden_size is '8'; expected a whole number"),
    "allowed, but not there": ({"num_hidden_layers": 1024}, "missing of the 9219 tensors"),
    "vocabulary that is not there": ({"vocab_size": 4_000_000}, "is [6, 8], expected [4000000, 8]"),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_out_of_all_proportion(tmp_path, name):
    changes, words = SIZES[name]
    refused(tiny_folder(tmp_path / "m", changes), CheckpointError, words)


LINKED = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "quantize_config.json",
    "model.safetensors",
]


@pytest.mark.parametrize("name", LINKED)
def test_links_out_of_the_folder(tmp_path, name):
    folder = tiny_folder(tmp_path / "m", tokenizer=TOKENIZER)
    outside = tmp_path / f"outside-{name}"
    inside = folder / name
    outside.write_bytes(inside.read_bytes() if inside.exists() else b"{}")
    inside.unlink(missing_ok=True)
    inside.symlink_to(outside)
    refused(folder, CheckpointError, name, f"a link to {outside}, outside the model folder")


def sharded(folder: Path, index: bytes) -> Path:
    tiny_folder(folder, tokenizer=TOKENIZER)
    (folder / "model.safetensors").rename(folder / SHARD)
    (folder / "model.safetensors.index.json").write_bytes(index)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "../evil.safetensors",
        "/etc/evil.safetensors",
        "a/../../evil.safetensors",
        "..\\evil.safetensors",
    ],
)
def test_paths_in_the_index(tmp_path, name):
    (tmp_path / "evil.safetensors").write_bytes(safetensors(TINY_SHAPES))
    weight_map = dict.fromkeys(TINY_SHAPES, name)
    folder = sharded(tmp_path / "m", json.dumps({"weight_map": weight_map}).encode())
    refused(folder, CheckpointError, "is not a plain name in the model folder")


def test_index_bombs(tmp_path):
    many = {f"t{i}": SHARD for i in range(262_145)}
    folder = sharded(tmp_path / "tensors", json.dumps({"weight_map": many}).encode())
    refused(folder, CheckpointError, "expected an object with 1 to 262144 tensors")
    files = {f"t{i}": f"{i}.safetensors" for i in range(5000)}
    folder = sharded(tmp_path / "files", json.dumps({"weight_map": files}).encode())
    refused(folder, CheckpointError, "5000 files; expected at most 4096")
    twice = b'{"weight_map": {"a": "%b", "a": "%b"}}' % (SHARD.encode(), SHARD.encode())
    refused(sharded(tmp_path / "twice", twice), CheckpointError, "duplicate key 'a'")
    folder = sharded(tmp_path / "pickle", b'{"weight_map": {"a": "pytorch_model.bin"}}')
    refused(folder, CheckpointError, "expected the name of a .safetensors file")


def test_a_tensor_in_two_files(tmp_path):
    index = {"weight_map": dict.fromkeys(TINY_SHAPES, SHARD) | {"x": "two.safetensors"}}
    folder = sharded(tmp_path / "m", json.dumps(index).encode())
    (folder / "two.safetensors").write_bytes(safetensors({"x": (2,), "lm_head.weight": (6, 8)}))
    refused(folder, CheckpointError, "tensor lm_head.weight is in two files", "two.safetensors")


def test_a_file_of_a_terabyte_of_holes(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    path = folder / "model.safetensors"
    header = {"x": {"dtype": "F16", "shape": [1 << 39], "data_offsets": [0, 1 << 40]}}
    path.write_bytes(file_bytes(json.dumps(header)))
    try:
        os.truncate(path, path.stat().st_size + (1 << 40))
    except OSError:
        pytest.skip("no files of that size here")
    refused(folder, CheckpointError, "model.embed_tokens.weight", "11 tensors that llama needs")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_pipes_and_folders_do_not_hang(tmp_path, name):
    folder = tiny_folder(tmp_path / "m", tokenizer=TOKENIZER)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, CheckpointError, f"{name} is not a regular file")
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, CheckpointError, f"{name} is not a regular file")


@pytest.mark.parametrize(
    "config,kind,words",
    [
        ({"quant_method": "rootkit"}, UnsupportedModelError, "quantized with rootkit"),
        ({"quant_method": "\x1b[2Jx"}, UnsupportedModelError, "quantized with \\x1b[2jx"),
        ({"quant_method": "x" * 100_000}, UnsupportedModelError, "quantized with xxxx"),
        ({"quant_method": ["gptq"]}, UnsupportedModelError, "quantized with unknown"),
        ("gptq", CheckpointError, "expected an object"),
        ([1], CheckpointError, "expected an object"),
    ],
)
def test_quantization_configs_that_are_none(tmp_path, config, kind, words):
    refused(tiny_folder(tmp_path / "m", {"quantization_config": config}), kind, words)


def test_the_sound_folder_is_not_refused(tmp_path):
    folder = tiny_folder(tmp_path / "m", TINY_CONFIG, tokenizer=TOKENIZER)
    assert only_our_errors(lambda: use_folder(folder, load=True)) is None
