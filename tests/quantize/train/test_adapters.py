"""Adapters over quantized weights: what is trained, what is written, what PEFT makes of it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from halfbyte.errors import ConfigError
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.base import Checkpoint
from halfbyte.loaders.model.quantizing import QuantizingCheckpoint
from halfbyte.quantize.train.adapter_file import save_adapters
from halfbyte.quantize.train.loop import Course
from halfbyte.quantize.train.network import TrainNetwork
from halfbyte.quantize.train.products import FrozenProduct
from halfbyte.quantize.train.qlora import (
    AdaptedProduct,
    Adapter,
    AdapterSettings,
    Finetuned,
    train_adapters,
)
from halfbyte.quantize.windows import Windows

FIXTURES = Path(__file__).parents[2] / "fixtures"
DENSE = FIXTURES / "fp16-llama-spm"
COURSE = Course(steps=8, batch=2, compute=torch.float32)


def drawn(count: int, length: int) -> Windows:
    rng = random.Random(random.getrandbits(32))
    ids = ([rng.randrange(3, 256) for _ in range(length)] for _ in range(count))
    return Windows(tuple(map(tuple, ids)))


@pytest.fixture
def nf4() -> Iterator[Checkpoint]:
    checkpoint = QuantizingCheckpoint(open_checkpoint(DENSE), "nf4")
    yield checkpoint
    checkpoint.close()


def trained(checkpoint: Checkpoint, windows: Windows, settings: AdapterSettings) -> Finetuned:
    return train_adapters(checkpoint, windows, settings, windows)


def adapted(checkpoint: Checkpoint, adapters: dict[str, Adapter]) -> TrainNetwork:
    def make(module, weight, bias):
        base = FrozenProduct(weight, bias, torch.float32)
        return AdaptedProduct(base, adapters[module], 0) if module in adapters else base

    return TrainNetwork(checkpoint, make)


@pytest.mark.parametrize("recompute", [False, True])
def test_adapters_learn_and_the_model_stays(nf4: Checkpoint, recompute: bool) -> None:
    windows = drawn(2, 16)
    before = TrainNetwork(nf4)
    ids = windows.ids[:1]
    with torch.no_grad():
        plain = before.logits(before.residual(ids))
    course = Course(steps=8, batch=2, compute=torch.float32, recompute=recompute)
    done = trained(nf4, windows, AdapterSettings(4, 8, rate=0.02, course=course))
    assert done.curve[0] == pytest.approx(done.before, rel=1e-5)
    assert done.after is not None and done.after < 0.8 * done.curve[0]
    assert len(done.adapters) == 7 * nf4.config.num_layers
    with torch.no_grad():
        assert torch.equal(before.logits(before.residual(ids)), plain)
        network = adapted(nf4, done.adapters)
        assert not torch.allclose(network.logits(network.residual(ids)), plain, atol=0.1)


def test_a_product_is_that_of_the_sum_of_matrices(nf4: Checkpoint) -> None:
    """And so are its gradients, though only the codes are kept. Sums of 80 to 200 float32."""
    weight = nf4.load("model.layers.0.mlp.up_proj.weight")
    assert isinstance(weight, QuantizedLinear) and weight.format.zero == "table"
    n, k = weight.shape
    adapter = Adapter(
        torch.randn(3, k, requires_grad=True), torch.randn(n, 3, requires_grad=True), 0.5
    )
    x = torch.randn(5, k, requires_grad=True)
    upstream = torch.randn(5, n)
    product = AdaptedProduct(FrozenProduct(weight, None, torch.float32), adapter, 0.0)
    leaves = [x, adapter.a_RK, adapter.b_NR]
    got = product(x)
    grads = torch.autograd.grad(got, leaves, upstream)
    dense = weight.dequantize() + adapter.scale * adapter.b_NR @ adapter.a_RK
    want = x @ dense.T
    assert torch.allclose(got, want, atol=1e-3)
    for mine, theirs in zip(grads, torch.autograd.grad(want, leaves, upstream), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-3)


def test_dropout_is_only_there_while_training(nf4: Checkpoint) -> None:
    windows = drawn(2, 12)
    state = torch.get_rng_state()
    curves = [
        trained(nf4, windows, AdapterSettings(2, 8, dropout, ("o_proj",), 0.05, COURSE)).curve
        for dropout in (0.0, 0.5, 0.5)
    ]
    # The same seed drops the same; B is 0 at first, so the first loss is the same, too.
    assert curves[1] == curves[2] != curves[0]
    assert curves[0][0] == curves[1][0]
    assert torch.equal(torch.get_rng_state(), state)


def test_files_are_those_of_peft(nf4: Checkpoint, tmp_path: Path) -> None:
    settings = AdapterSettings(2, 6, 0.1, ("q_proj", "down_proj"), course=COURSE)
    done = trained(nf4, drawn(2, 8), settings)
    assert {adapter.scale for adapter in done.adapters.values()} == {3}
    folder = tmp_path / "out"
    save_adapters(folder, done.adapters, settings, "some/base")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    tensors = load_file(folder / "adapter_model.safetensors")
    layers, k = nf4.config.num_layers, nf4.config.hidden_size
    assert len(tensors) == 2 * 2 * layers
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    assert tensors[name.format("A")].shape == (2, k)
    assert torch.equal(
        tensors[name.format("B")], done.adapters["model.layers.0.self_attn.q_proj"].b_NR
    )
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["peft_type"] == "LORA" and config["r"] == 2 and config["lora_alpha"] == 6
    assert config["target_modules"] == ["down_proj", "q_proj"]
    assert config["base_model_name_or_path"] == "some/base"
    kept = (folder / "adapter_config.json").read_bytes()
    with pytest.raises(ConfigError, match="out exists already"):
        save_adapters(folder, {}, settings, "")
    assert (folder / "adapter_config.json").read_bytes() == kept


def test_what_cannot_be_trained_is_refused() -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"rank": 0}, "rank is 0"),
        ({"dropout": 1.0}, "dropout is 1"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"rate": -1.0}, "rate is -1"),
        ({"targets": ("q_proj", "lm_head")}, "targets has 'lm_head'"),
        ({"targets": ()}, "targets has 'nothing'"),
    ]
    for wrong, match in refused:
        with pytest.raises(ConfigError, match=match):
            AdapterSettings(**wrong)
    checkpoint = open_checkpoint(FIXTURES / "gptq-v1-4b-g64-actorder-phi3")
    with pytest.raises(ConfigError, match=r"'q_proj', which is a part of self_attn.qkv_proj"):
        train_adapters(checkpoint, drawn(1, 8), AdapterSettings(course=COURSE))
    settings = AdapterSettings(2, targets=("o_proj", "down_proj"), course=Course(1, 1))
    assert len(train_adapters(checkpoint, drawn(1, 8), settings).curve) == 1
    checkpoint.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [None, "nf4"])
def test_peft_computes_the_same_logits(scheme, tmp_path: Path) -> None:
    """Over transformers' model with the weights that the codes mean; in float32, whose sums add up
    in another order there.
    """
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    checkpoint: Checkpoint = open_checkpoint(DENSE)
    base = tmp_path / "base"
    shutil.copytree(DENSE, base)
    tensors = load_file(base / "model.safetensors")
    if scheme:
        checkpoint = QuantizingCheckpoint(checkpoint, scheme)
        for name in tensors:
            weight = checkpoint.load(name)
            if isinstance(weight, QuantizedLinear):
                tensors[name] = weight.dequantize()
    floats = {name: tensor.float() for name, tensor in tensors.items()}
    save_file(floats, base / "model.safetensors", metadata={"format": "pt"})
    settings = AdapterSettings(4, 8, rate=0.02, course=COURSE)
    done = trained(checkpoint, drawn(2, 16), settings)
    save_adapters(tmp_path / "adapter", done.adapters, settings, str(base))
    ids = drawn(2, 24).ids
    network = adapted(checkpoint, done.adapters)
    with torch.no_grad():
        got = network.logits(network.residual(ids)).view(2, 24, -1)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        plain = model(torch.tensor(ids)).logits
        model = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
        want = model(torch.tensor(ids)).logits
    assert (got - want).norm() / want.norm() < 1e-5
    assert (plain - want).norm() / want.norm() > 0.1
    checkpoint.close()
