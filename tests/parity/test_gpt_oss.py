"""gpt-oss with its experts in MXFP4, as both kinds of file have them, against transformers.

The codes and scales are drawn; transformers computes with what its own converter makes of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from seeds import fresh_seed
from test_families import BACKENDS, assert_greedy, assert_logits, greedy, prompts_of
from test_gguf_logits import gpt_oss_parts, write_model
from test_quantized_families import TOOLS, compare, quantize, write
from tiny_models import CASES, VOCAB, Truth, make_model, save_model
from torch import Tensor

from halfbyte import Engine
from halfbyte.errors import CheckpointError, UnsupportedModelError
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders import open_checkpoint

NAME, LAYERS, EXPERTS, HIDDEN, INNER = "gpt_oss-mxfp4", 3, 6, 64, 96
ROWS = {"gate_up_proj": (2 * INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
LAYER = "model.layers.1."
STACK = f"{LAYER}mlp.experts."
Tensors = dict[str, Tensor]


@pytest.fixture(autouse=True)
def case(monkeypatch: pytest.MonkeyPatch) -> None:
    options = CASES["gpt_oss"][1] | {"intermediate_size": INNER}
    monkeypatch.setitem(tiny_models.CASES, NAME, ("gpt_oss", options))


def drawn(seed: int) -> tuple[Any, Tensors]:
    """A model, and the codes and scales of its experts as transformers stores them."""
    peer = pytest.importorskip("transformers.integrations.mxfp4")
    model, rng = make_model(NAME, seed), np.random.default_rng(seed)
    parts: Tensors = {}
    for layer, block in enumerate(model.model.layers):
        # Sinks that take nearly nothing and nearly all.
        block.self_attn.sinks.data.copy_(torch.tensor([-6.0, 0.0, 2.0, 6.0]))
        for name, (n, k) in ROWS.items():
            codes = rng.integers(0, 256, (EXPERTS, n, k // 32, 16), dtype=np.uint8)
            # Entries are of the size of 3: weights of about k ** -0.5.
            scales = rng.integers(121, 124, (EXPERTS, n, k // 32), dtype=np.uint8)
            pair = torch.from_numpy(codes), torch.from_numpy(scales)
            stem = f"model.layers.{layer}.mlp.experts.{name}"
            parts |= {f"{stem}_blocks": pair[0], f"{stem}_scales": pair[1]}
            dense = peer.convert_moe_packed_tensors(*pair, dtype=torch.float32)
            getattr(block.mlp.experts, name).data.copy_(dense)
    return model, parts


def as_stored(model: Any, parts: Tensors, folder: Path) -> Path:
    """A folder as the model's makers have it: stacks of codes and scales, biases beside them."""
    save_model(model, folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {
        n: t for n, t in tensors.items() if not n.endswith(("experts.gate_up_proj", "down_proj"))
    }
    assert len(tensors) - len(kept) == 2 * LAYERS
    save_file(kept | parts, folder / "model.safetensors")
    edit(
        folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    )
    return folder


def edit(folder: Path, **more: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def as_converted(model: Any, parts: Tensors, path: Path) -> Path:
    """A GGUF file with the same codes: halves of 32 columns are the halves of a byte there."""
    blocks = {}
    for name, codes in parts.items():
        if not name.endswith("_blocks"):
            continue
        low_high = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)
        packed = low_high[..., :16] | low_high[..., 16:] << 4
        scales = parts[name.replace("_blocks", "_scales")].unsqueeze(-1)
        raw = torch.cat((scales, packed), -1).flatten(2).numpy()
        stem = f"{name.removesuffix('_blocks')}.weight"
        gates = {stem.replace("gate_up", p): raw[:, i::2] for i, p in enumerate(("gate", "up"))}
        for part, rows in (gates if "gate_up" in stem else {stem: raw}).items():
            blocks[part] = np.ascontiguousarray(rows), gguf.GGMLQuantizationType.MXFP4
    return write_model(path, "gpt-oss", model, blocks)


def both(seed: int, path: Path) -> tuple[Any, list[Path]]:
    model, parts = drawn(seed)
    files = as_stored(model, parts, path / "m"), as_converted(model, parts, path / "m.gguf")
    return model, list(files)


def test_logits_and_greedy_tokens(tmp_path: Path) -> None:
    """Prompts longer than the window, in chunks, on each backend for both kinds of file."""
    # Routers that see scores 1e-6 apart may choose another expert: not with every seed.
    model, files = both(7, tmp_path)
    prompts = prompts_of(7)
    wanted = [Truth(model).logits(prompt) for prompt in prompts]
    assert 0.5 < float(torch.cat(wanted).std()) < 10, "the logits say nothing"
    for path in files:
        for backend, options in BACKENDS.items():
            print(path.name, backend)
            with Engine(path, max_batch=4, max_batch_tokens=48, **options) as engine:
                assert_logits(engine, wanted, prompts)
                answers = greedy(engine, prompts) if backend == "cpu_c" else []
            for prompt, answer in zip(prompts, answers, strict=False):
                ids = VOCAB if path.suffix == ".gguf" else 257  # the file names its padding
                assert_greedy(model, prompt, answer, grows=False, ids=ids)


@pytest.mark.exact
def test_both_kinds_of_file_hold_the_weights_of_transformers(tmp_path: Path) -> None:
    model, files = both(fresh_seed(), tmp_path)
    experts = model.model.layers[1].mlp.experts
    stacks = {
        "gate_proj": (experts.gate_up_proj[..., ::2], experts.gate_up_proj_bias[..., ::2]),
        "up_proj": (experts.gate_up_proj[..., 1::2], experts.gate_up_proj_bias[..., 1::2]),
        "down_proj": (experts.down_proj, experts.down_proj_bias),
    }
    for path in files:
        checkpoint = open_checkpoint(path)
        for name, (matrices, biases) in stacks.items():
            for i in range(EXPERTS):
                weight = checkpoint.load(f"{STACK}{i}.{name}.weight")
                assert isinstance(weight, QuantizedLinear) and weight.compact is not None
                assert torch.equal(weight.dequantize(), matrices[i].T)
                bias = checkpoint.load(f"{STACK}{i}.{name}.bias")
                assert isinstance(bias, Tensor) and torch.equal(bias, biases[i])
        sinks = checkpoint.load(f"{LAYER}self_attn.sinks")
        assert isinstance(sinks, Tensor)
        assert torch.equal(sinks, model.model.layers[1].self_attn.sinks)
        assert sum(info.nbytes for info in checkpoint.tensors() if info.label == "MXFP4") == (
            LAYERS * EXPERTS * 3 * HIDDEN * INNER // 32 * 17
        )
        assert not checkpoint.config.rope.truncate
        assert checkpoint.config.sliding_window == (16, 0, 16)
        assert not checkpoint.report().warnings
        checkpoint.close()


@pytest.mark.exact
def test_chunks_and_kept_beginnings_do_not_change_bits(tmp_path: Path) -> None:
    model, parts = drawn(fresh_seed())
    folder = as_stored(model, parts, tmp_path / "m")
    prompts = prompts_of(fresh_seed())[3:]
    with (
        Engine(folder, dtype="float32", max_batch_tokens=7, max_batch=1) as narrow,
        Engine(folder, dtype="float32", max_batch_tokens=256, max_batch=8) as wide,
    ):
        for prompt in prompts:
            assert torch.equal(narrow.logits(prompt), wide.logits(prompt))
        fresh = greedy(wide, prompts)
        assert greedy(narrow, prompts) == fresh
        longer = [[*prompts[-1][:80], 3, 1, 4]]
        first = greedy(wide, longer)
        assert greedy(wide, longer) == first == greedy(narrow, longer)


def apart(tensors: Tensors) -> Tensors:
    """The experts as linear modules, as tools make them to quantize each for itself."""
    found: Tensors = {}
    for name, value in tensors.items():
        if ".experts." not in name:
            found[name] = value
            continue
        for part, rows in gpt_oss_parts(name, value).items():
            head, module, ending = part.rsplit(".", 2)
            for i, one in enumerate(rows):
                found[f"{head}.{i}.{module}.{ending}"] = one.contiguous()
    return found


def put_back(model: Any, tensors: Tensors) -> None:
    """Those weights in the model."""
    for name, value in model.state_dict().items():
        if ".experts." not in name:
            value.copy_(tensors[name])
            continue
        for part, rows in gpt_oss_parts(name, value).items():  # views
            head, module, ending = part.rsplit(".", 2)
            for i, one in enumerate(rows):
                one.copy_(tensors[f"{head}.{i}.{module}.{ending}"])


@pytest.mark.parametrize("tool", ["none", *TOOLS])
def test_experts_one_by_one(tool: str, tmp_path: Path) -> None:
    """Each a module of its own, as they are and quantized as other methods do."""
    model = make_model(NAME, 7)
    folder = save_model(model, tmp_path / "m")
    tensors = apart(load_file(folder / "model.safetensors"))
    if tool == "none":
        write(folder, tensors)
    else:
        special = r"model\.layers\.\d+\.mlp\.experts\.2\.down_proj"
        tensors, dense = quantize(tensors, special, tool)
        put_back(model, dense)
        config = TOOLS[tool][1](special)
        if "ignore" in config:
            config["ignore"][1] = "re:.*router$"
        write(folder, tensors, quantization_config=config)
    compare(model, folder, [], 7)


def one_nan(scales: Tensor) -> Tensor:
    scales = scales.clone()
    scales[2, 5, 1] = 255
    return scales


SCALES, SINKS = f"{STACK}gate_up_proj_scales", f"{LAYER}self_attn.sinks"
BIAS = f"{STACK}down_proj_bias"
DAMAGE: dict[str, tuple[Callable[[Tensors], Any], tuple[str, ...]]] = {
    "sinks of another size": (
        lambda t: t.update({SINKS: torch.zeros(5)}),
        (f"{SINKS} is [5], expected [4] (num_attention_heads)",),
    ),
    "no sinks": (lambda t: t.pop(SINKS), (f"{SINKS} is missing",)),
    "a sink that is no number": (
        lambda t: t[SINKS].fill_(torch.nan),
        (f"tensor {SINKS} holds nan at element 0",),
    ),
    "a scale that is no number": (
        lambda t: t.update({SCALES: one_nan(t[SCALES])}),
        (f"{SCALES}[2, 1::2] holds the exponent 255 (NaN) in row 2, group 1",),
    ),
    "scales of fewer experts": (
        lambda t: t.update({SCALES: t[SCALES][:5].clone()}),
        (f"{SCALES} is [5, 192, 2]; expected [6, 192, 2]",),
    ),
    "no scales": (lambda t: t.pop(SCALES), ("gate_proj.scales is missing",)),
    "biases of fewer experts": (
        lambda t: t.update({BIAS: t[BIAS][:5].clone()}),
        (f"{BIAS} is [5, 64]; expected [6, 64], where 6 is num_local_experts",),
    ),
    "no biases": (lambda t: t.pop(BIAS), (f"{BIAS} is missing",)),
    "a bias that is no number": (
        lambda t: t[BIAS][3].fill_(torch.inf),
        (f"tensor {BIAS} holds inf at element 0 of {STACK}3.down_proj.bias",),
    ),
    "no experts": (
        lambda t: [t.pop(n) for n in list(t) if "down_proj_blocks" in n or "down_proj_scales" in n],
        (f"{STACK}down_proj",),
    ),
}


def load_all(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    try:
        for info in checkpoint.tensors():
            checkpoint.load(info.name)
    finally:
        checkpoint.close()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    options = CASES["gpt_oss"][1] | {"intermediate_size": INNER}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny_models.CASES, NAME, ("gpt_oss", options))
        yield as_stored(*drawn(fresh_seed()), tmp_path_factory.mktemp("stored") / "m")


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folders_are_refused(name: str, stored: Path, tmp_path: Path) -> None:
    change, says = DAMAGE[name]
    tensors = load_file(stored / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((stored / "config.json").read_text())
    with pytest.raises(CheckpointError) as caught:
        load_all(tmp_path)
    for text in (str(tmp_path), *says):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("swiglu_limit", 6.0, "swiglu_limit is 6.0"),
        ("swiglu_alpha", 1.7, "swiglu_alpha is 1.7"),
        ("num_local_experts", 5, "gate_up_proj_blocks is [6, 192, 2, 16]; expected [5, "),
        ("num_experts_per_tok", 7, "num_experts_per_tok is 7"),
    ],
)
def test_other_configs_are_refused(
    key: str, value: float, says: str, stored: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes((stored / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text((stored / "config.json").read_text())
    edit(tmp_path, **{key: value})
    with pytest.raises((CheckpointError, UnsupportedModelError)) as caught:
        load_all(tmp_path)
    assert says in str(caught.value) and str(tmp_path) in str(caught.value)
