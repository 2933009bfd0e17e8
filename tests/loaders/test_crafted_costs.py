"""Small files that would cost much time or memory, or end in another program's error."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable

import pytest
import torch
from computing_time import computes_within
from loader_budget import FIXTURES
from loader_gguf_files import U32, kv, refuses, tiny_gguf, write
from safetensors.torch import load_file, save_file

from halfbyte.engine.models.rope import attention_factor, inverse_frequencies
from halfbyte.engine.text.special_text import Span, bounded, longest_first_pattern
from halfbyte.engine.text.user_marks import UserMarks
from halfbyte.errors import CheckpointError, TokenizerError
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.files.fields import Fields
from halfbyte.loaders.files.folder_files import ModelFolder
from halfbyte.loaders.files.name_patterns import Patterns
from halfbyte.loaders.files.safetensors_index import INDEX, SafetensorsFiles
from halfbyte.loaders.gguf.checkpoint import GGUFCheckpoint
from halfbyte.loaders.hf.layers import read_experts
from halfbyte.loaders.hf.methods.ct_scheme import WeightScheme
from halfbyte.loaders.hf.methods.gptq_config import read_gptq_config
from halfbyte.loaders.hf.methods.scaled import offset_zeros
from halfbyte.loaders.hf.rope import read_rope
from halfbyte.loaders.model.families import family_of_type
from halfbyte.loaders.model.report import MAX_TEXTS, LoadReport

# Seconds of this process; what is refused here took 2 to 60 before, or all memory.
LIMIT = 1.0


def quick(call: Callable[[], object]) -> None:
    with computes_within(LIMIT):
        call()


def test_a_flood_of_warnings():
    report = LoadReport("gguf")
    quick(lambda: [report.warn(f"tensor {i % 50_000}") for i in range(100_000)])
    assert len(report.warnings) == MAX_TEXTS + 1
    assert report.warnings[-1] == "more than 1000 warnings; the others are left out"
    report.decide("tensor 1")
    report.decide("tensor 1")
    assert report.decisions == ["tensor 1"]


def test_thousands_of_unknown_metadata_keys(tmp_path):
    keys = {f"llama.k{i}": kv(f"llama.k{i}", U32, 1) for i in range(15_000)}
    path = write(tmp_path / "m.gguf", tiny_gguf(keys))
    quick(lambda: GGUFCheckpoint(path).close())


@pytest.mark.parametrize(
    "texts",
    [
        ["<" + "a" * 1_000_000 + ">"],
        ["<" + "a" * 5000 + str(i) for i in range(9)],
        [f"<|{i}|>" for i in range(100_000)],
    ],
)
def test_too_many_or_too_long_special_tokens(texts):
    """All suffixes of a text of a million characters would fill 500 GB."""
    for make in (bounded, longest_first_pattern):
        quick(lambda make=make: refuses(lambda: make(texts), TokenizerError, "is crafted"))


def test_real_numbers_of_special_tokens():
    class Finder:
        def __init__(self) -> None:
            self.special = {f"<unused{i}>": i for i in range(6242)}
            self.normalizes = False
            self.blank = "#"

        def find(self, text: str) -> list[Span]:
            return [Span(77, 2, 12)]

    marks = UserMarks(Finder(), [])
    text, users = marks.users(
        "a <unused77> b", ["a <unused77> b"], frozenset(), lambda change: change("a <unused77> b")
    )
    assert text == "a <unused77> b" and users.within(2, 12)


def test_a_long_list_of_plain_layers():
    family = family_of_type("qwen3_moe")
    assert family is not None
    values = {**family.hf.defaults, "num_experts": 8}
    read = Fields("config.json", {**values, "mlp_only_layers": [1023] * 262_000})
    quick(lambda: read_experts(read, family, 1024))


@pytest.mark.parametrize("version", ["²", "9" * 5000, "1.²", "", "x.y"])
def test_versions_that_are_no_numbers(version):
    values = {"bits": 4, "group_size": 32, "meta": {"quantizer": f"gptqmodel:{version}"}}
    quick(lambda: read_gptq_config("config.json", values))


def test_a_flood_of_patterns():
    for patterns in (["a"] * 262_000, ["a" * 999] * 4000):
        quick(lambda p=patterns: refuses(lambda: Patterns("x", p), CheckpointError, "at most"))


@pytest.mark.parametrize("factor", [1e-6, 0.01])
def test_a_rotation_of_no_dimension_is_not_one_of_the_whole_head(factor):
    read = Fields("config.json", {"partial_rotary_factor": factor})
    refuses(
        lambda: read_rope(read, 96, 4096, family_of_type("phi3")),
        CheckpointError,
        "partial_rotary_factor is .*; expected 2 of 96 or more",
    )


def test_an_index_as_long_as_the_largest_real_ones(tmp_path):
    """235B parameters in GPTQ: 144 000 tensors; the error is that the files are missing."""
    names = [f"model.layers.{i}.mlp.experts.7.down_proj.qweight" for i in range(144_000)]
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"00002\.safetensors.* is missing"):
        SafetensorsFiles(ModelFolder(tmp_path))


@pytest.mark.parametrize("beta", ["beta_fast", "beta_slow"])
def test_a_ramp_of_yarn_beyond_all_numbers(beta):
    """5e-324 is the least number there is; a context divided by it is infinite."""
    scaling = {"rope_type": "yarn", "factor": 4.0, beta: 5e-324}
    read = Fields("config.json", {"rope_scaling": scaling})
    refuses(
        lambda: read_rope(read, 64, 4096), CheckpointError, f"{beta} is 5e-324; expected 0 for the"
    )
    assert read_rope(Fields("x", {"rope_scaling": {**scaling, beta: 0}}), 64, 4096).kind == "yarn"


def test_random_rotary_rules_that_are_accepted_give_numbers():
    seed = random.randrange(1 << 40)
    print("seed", seed)
    rng, accepted = random.Random(seed), 0
    numbers = [5e-324, 1e-6, 1e-3, 0.5, 1.0, 1.001, 2, 32, 4096, 1e6, 1e9, 1e15]
    keys = ["rope_theta", "factor", "attention_factor", "beta_fast", "beta_slow", "mscale"]
    keys += ["mscale_all_dim", "low_freq_factor", "high_freq_factor"]
    for _ in range(4000):
        kind = rng.choice(["linear", "llama3", "yarn", "longrope"])
        values = {key: rng.choice(numbers) for key in keys if rng.random() < 0.4}
        values |= {"rope_type": kind, "original_max_position_embeddings": rng.choice([2, 1 << 30])}
        if kind == "longrope":
            values |= dict.fromkeys(("short_factor", "long_factor"), [rng.choice(numbers[1:])] * 2)
        length = rng.choice([1, 64, 1 << 30])
        try:
            rope = read_rope(Fields("x", {"rope_parameters": values}), 4, length)
        except CheckpointError:
            continue
        accepted += 1
        assert inverse_frequencies(rope, 4, length).isfinite().all()
        assert 0 < attention_factor(rope, length) < 1e7
    assert accepted > 100


def test_a_type_that_no_method_reads(tmp_path):
    """Read before its type is looked at, it would end in a KeyError."""
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 8,
        "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 8},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    header: dict[str, object] = {}
    for index, suffix in enumerate(("qweight", "qzeros", "scales", "g_idx", "bias")):
        offsets = [8 * index, 8 * index + 8]
        entry = {"dtype": "U64", "shape": [1], "data_offsets": offsets}
        header[f"model.layers.0.mlp.up_proj.{suffix}"] = entry
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(40)
    (tmp_path / "model.safetensors").write_bytes(data)
    refuses(lambda: open_checkpoint(tmp_path), CheckpointError, "U64")


@pytest.mark.parametrize("fixture", ["gptq-v1-8b-channel-qwen3", "awq-gemm-g64-llama"])
def test_a_norm_stored_like_a_matrix(tmp_path, fixture):
    """Its shape has one number, where the method of a matrix expects two."""
    shutil.copytree(FIXTURES / fixture, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if ".layers.0.self_attn.o_proj." in name]:
        tensors[name.replace("model.layers.0.self_attn.o_proj", "model.norm")] = tensors[name]
    del tensors["model.norm.weight"]
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    refuses(lambda: open_checkpoint(tmp_path / "m"), CheckpointError, r"model\.norm\.weight is")


def test_zero_points_that_are_no_numbers():
    """Zero points in float8 can be NaN, which no whole number is."""
    seen = WeightScheme(8, "float")
    refuses(
        lambda: offset_zeros("config.json", "w.zero", seen, torch.tensor([[float("nan")]])),
        CheckpointError,
        "w.zero holds nan",
    )
