"""Targets and ignore rules: which group a module belongs to."""

from __future__ import annotations

import pytest
import torch
from computing_time import computes_within
from scaled_folders import DOWN, ct_config, llama_folder, load_from, quantized, refused

from halfbyte.errors import CheckpointError
from halfbyte.loaders.files import name_patterns
from halfbyte.loaders.hf.methods import ct_rules
from halfbyte.loaders.hf.methods.ct_rules import Rules, classes_of

N, K = 8, 32
LINEAR = ("Linear", "Module")


@pytest.mark.parametrize(
    ("rules", "group"),
    [
        (["Linear"], "Linear"),
        (["Module"], "Module"),
        (["Embedding"], None),
        (["linear"], None),
        ([DOWN], DOWN),
        (["down_proj"], None),  # a full name, not a part of one
        (["re:.*down_proj"], "re:.*down_proj"),
        (["re:down_proj"], None),  # from the start of the name
        (["re:model"], "re:model"),  # and not to its end
        (["Linear", "re:.*mlp.*", DOWN], DOWN),
        (["Linear", "re:.*mlp.*"], "re:.*mlp.*"),
        (["re:model.*", "re:.*mlp.*"], "re:.*mlp.*"),  # by their text, as in the library
    ],
)
def test_the_most_specific_rule_counts(rules, group):
    assert Rules("config", {rule: rule for rule in rules}).group_for(DOWN, LINEAR) == group


def test_classes():
    assert classes_of("model.embed_tokens") == ("Embedding", "Module")
    assert classes_of("lm_head") == LINEAR


def test_too_many_rules_and_too_many_steps(monkeypatch):
    monkeypatch.setattr(ct_rules, "MAX_EXPRESSIONS", 2)
    with pytest.raises(CheckpointError, match="3 rules, 3 of them expressions"):
        Rules("config", {f"re:{i}": "" for i in range(3)})
    monkeypatch.setattr(name_patterns, "MAX_TOTAL_STEPS", 10)
    rules = Rules("config", {"re:no": ""})
    with pytest.raises(CheckpointError, match="over 10 steps in all"):
        for _ in range(20):
            rules.group_for(DOWN, LINEAR)


def test_rules_of_a_large_mixture():
    """Expressions that tools write, on all 18 624 modules of a model with 128 experts a layer."""
    rules = Rules("config", {"re:.*mlp.gate$": "", "re:.*self_attn.*": "", r"re:.*\.router\.": ""})
    with computes_within(0.5):
        for layer in range(48):
            for expert in range(128):
                for part in ("gate", "up", "down"):
                    name = f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj"
                    assert rules.rule_for(name, LINEAR) is None
            assert rules.rule_for(f"model.layers.{layer}.mlp.gate", LINEAR) == "re:.*mlp.gate$"


def test_slow_expressions_that_match_are_counted_too():
    """Six repeats, as slow as can be on a name that every module has."""
    rules = Rules("config", {"re:" + "(?:.*.*)?" * 12: ""})
    over = pytest.raises(CheckpointError, match="over 2000000 steps in all")
    with computes_within(5), over:
        for index in range(100_000):
            rules.rule_for(f"model.layers.{index}.{'a' * 60}", LINEAR)


def parts() -> dict[str, torch.Tensor]:
    return {"weight": torch.ones(N, K, dtype=torch.int8), "weight_scale": torch.ones(N, 1)}


WEIGHTS = {"num_bits": 8, "type": "int", "strategy": "channel"}


def test_groups_of_different_formats(tmp_path):
    groups = {
        "group_0": {"targets": ["Linear"], "weights": {**WEIGHTS, "num_bits": 4}},
        "group_1": {
            "targets": ["re:.*down_proj$"],
            "weights": WEIGHTS,
            "format": "int-quantized",
        },
    }
    config = ct_config({}, config_groups=groups, format="mixed-precision")
    folder = llama_folder(tmp_path / "m", (N, K), parts(), config)
    assert quantized(folder).format.bits == 8
    # The other modules are in float, although group_0 covers them: the tensors are followed.
    _, _, warnings = load_from(folder)
    said = "group group_0 of the config covers 6 modules that are stored in float, such as"
    assert any(said in text for text in warnings)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"ignore": ["re:.*down_proj"]}, "ignore has 're:.*down_proj'"),
        ({"ignore": ["Linear"]}, "ignore has 'Linear'"),
        ({"targets": ["re:.*q_proj"]}, "no group's targets match it"),
    ],
)
def test_quantized_tensors_that_the_rules_leave_out(tmp_path, change, part):
    config = ct_config(WEIGHTS, format="int-quantized", **change)
    folder = llama_folder(tmp_path / "m", (N, K), parts(), config)
    refused(folder, CheckpointError, f"tensor {DOWN}.weight is quantized, but", part)


def test_the_label_of_a_group_yields_to_the_tensors(tmp_path):
    folder = llama_folder(tmp_path / "m", (N, K), parts(), ct_config(WEIGHTS))
    weight, _, warnings = load_from(folder)
    assert weight.shape == (N, K)
    assert any("labelled pack-quantized, but its weights are stored one" in t for t in warnings)


@pytest.mark.parametrize("state", ["frozen", "initialized"])
def test_dense_weights_of_an_uncompressed_checkpoint(tmp_path, state):
    config = ct_config(WEIGHTS, quantization_status=state)
    folder = llama_folder(tmp_path / "m", (N, K), {}, config)
    weight, decisions, warnings = load_from(folder)
    assert isinstance(weight, torch.Tensor) and weight.dtype == torch.float16
    assert any(f"stored in float (quantization_status {state})" in text for text in decisions)
    assert warnings == []


def test_other_places_of_the_config(tmp_path):
    folder = llama_folder(tmp_path / "m", (N, K), parts(), {})
    text = (folder / "config.json").read_text()
    config = ct_config(WEIGHTS, format="int-quantized")
    del config["quant_method"]
    added = f'"compression_config": {config!r}'.replace("'", '"').replace("None", "null")
    (folder / "config.json").write_text(text[:-1] + ", " + added + "}")
    assert quantized(folder).format.bits == 8
