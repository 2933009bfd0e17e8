"""What ``halfbyte quantize`` writes, loaded by the tools whose formats these are.

A small dense model in every format. A tool's own dequantization must be ours, and logits in
float32 from it those of the reference backend. Then the tool runs the file as it does on a CPU.
A tool that is missing skips its formats:

    pip install gptqmodel bitsandbytes compressed-tensors llama-cpp-python
    python -m pytest -m slow tests/parity/test_quantized_by_us.py
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from halfbyte import Engine
from halfbyte.loaders import open_checkpoint
from halfbyte.quantize.job import QuantizeJob, run_job
from halfbyte.quantize.recipe import Order

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests" / "fixtures" / "fp16-llama-spm"
TEXT = ROOT / "LICENSE"
PROMPT = "Once upon a time there was a little girl who liked numbers: 3, 14 and 159."

# Of the largest weight of a matrix: a float32 product each, with double quantization three.
WEIGHT = 1e-6
# Limits of |difference| of logits over their deviation: (largest, mean).
Limits = tuple[float, float]
INF = float("inf")
# The same weights in float32: sums in another order.
EXACT: Limits = (1e-4, 1e-5)
# float16 or bfloat16 in the tool, float32 here: as for fixtures (test_fixtures.py).
HALF: Limits = (INF, 0.03)
# Inputs in 8 bits: codes near a tie flip with the order of sums, and then all codes behind them do.
# As for fixtures in float32 (checkpoints.py).
CODES: Limits = (INF, 0.02)
# llama.cpp's blocks of inputs in 8 bits beside ours: the same, with a cache in float16 and blocks
# of 256 where it has K-quants. Rounding inputs at all moves logits by 0.04 in the mean.
BLOCKS: Limits = (INF, 0.03)
# LLM.int8() rounds inputs to 8 bits but for columns beyond a threshold; we do not (formats.md).
INPUTS: Limits = (INF, 0.06)


@dataclass(frozen=True)
class Answer:
    """What a tool says about a file.

    Attributes:
        what: how it came about.
        logits: float [T, V].
        limits: how close ours must be.
        ours: options of the engine that computes the same.
        weights: module -> the tool's float32 weight [N, K]; empty when it tells none.
    """

    what: str
    logits: Tensor
    limits: Limits
    ours: dict[str, Any]
    weights: dict[str, Tensor]


Peer = Callable[[Path, list[int]], list[Answer]]
REFERENCE: dict[str, Any] = {"backend": "reference", "dtype": "float32"}


def load_model(path: Path, **options: Any) -> Any:
    auto: Any = importlib.import_module("transformers").AutoModelForCausalLM
    return auto.from_pretrained(path, device_map="cpu", dtype=torch.float32, **options)


def ran(what: str, model: Any, ids: list[int], limits: Limits) -> Answer:
    """The tool's own run."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float()
    return Answer(what, logits, limits, REFERENCE, {})


def twin(state: dict[str, Tensor], weights: dict[str, Tensor], ids: list[int]) -> Answer:
    """A dense float32 model of a tool's weights and of the other tensors that it loaded."""
    model = load_model(MODEL)
    own = {name: state[name].float() for name in model.state_dict() if name in state}
    own |= {f"{name}.weight": weight_NK for name, weight_NK in weights.items()}
    model.load_state_dict(own | {"lm_head.weight": own["model.embed_tokens.weight"]})
    return replace(ran("dequantized", model, ids, EXACT), weights=weights)


def gptqmodel(path: Path, ids: list[int]) -> list[Answer]:
    tool: Any = pytest.importorskip("gptqmodel")
    packing: Any = importlib.import_module("gptqmodel.quantization.awq.utils.packing_utils")
    say_that_zero_points_are_gptqmodels(path / "config.json")
    model = tool.GPTQModel.load(
        str(path), device="cpu", backend=tool.BACKEND.TORCH, dtype=torch.float16
    ).model
    with torch.compiler.set_stance("force_eager"):  # compiling would take minutes
        answer = ran("run in float16", model, ids, HALF)
    weights = {}
    for name, layer in model.named_modules():
        if not hasattr(layer, "qweight"):
            continue
        # It would round the product of scale and code to float16.
        layer.scales = layer.scales.float()
        if hasattr(layer, "g_idx") and layer.g_idx is not None:
            weight_KN = layer.dequantize_weight()
        else:
            stored = layer.qweight, layer.qzeros, layer.scales
            weight_KN = packing.dequantize_gemm(*stored, layer.bits, layer.group_size)
        weights[name] = weight_KN.T.float().contiguous()
    return [answer, twin(model.state_dict(), weights, ids)]


def say_that_zero_points_are_gptqmodels(config: Path) -> None:
    """GPTQModel refuses them in version 1 of the format from any tool but itself, since there are
    two ways to write them. Ours is its way, and it is to read them.
    """
    values = json.loads(config.read_text())
    values["quantization_config"]["meta"] = {"quantizer": ["gptqmodel:7.7.0"]}
    config.write_text(json.dumps(values))


def bitsandbytes(path: Path, ids: list[int]) -> list[Answer]:
    tool: Any = pytest.importorskip("bitsandbytes")
    model = load_model(path)
    weights = {}
    for name, layer in model.named_modules():
        if isinstance(layer, tool.nn.Linear4bit):
            stored, state = layer.weight.data, layer.weight.quant_state
            weights[name] = tool.functional.dequantize_4bit(stored, state).float()
        elif isinstance(layer, tool.nn.Linear8bitLt):
            codes, scales = layer.weight.data, layer.weight.SCB
            weights[name] = tool.functional.int8_vectorwise_dequant(codes, scales)
    int8 = any(isinstance(layer, tool.nn.Linear8bitLt) for layer in model.modules())
    dense = twin(model.state_dict(), weights, ids)
    return [dense, ran("run", load_model(path), ids, INPUTS if int8 else HALF)]


def compressed_tensors(path: Path, ids: list[int]) -> list[Answer]:
    base: Any = pytest.importorskip("compressed_tensors.compressors.base")
    rules: Any = importlib.import_module("compressed_tensors.quantization")
    config: Any = importlib.import_module("transformers").AutoConfig.from_pretrained(path)
    settings = config.quantization_config
    (group,) = settings["config_groups"].values()
    scheme = rules.QuantizationScheme(**{k: v for k, v in group.items() if k != "format"})
    form = group.get("format") or settings["format"]
    compressor = base.BaseCompressor.get_value_from_registry(form)
    state = load_file(path / "model.safetensors")
    weights = {}
    for name in sorted({key.rpartition(".")[0] for key in state if key.endswith("weight_scale")}):
        own = {key.rpartition(".")[2]: state[key] for key in state if key.startswith(name + ".")}
        # It would give the product in the scales' type.
        own["weight_scale"] = own["weight_scale"].float()
        weights[name] = compressor.decompress(own, scheme)["weight"]
    dense = scheme.input_activations is None  # the twin rounds no inputs
    answers = [twin(state, weights, ids)] if dense else []
    if scheme.weights.symmetric or loads_zero_points():
        answers.append(ran("run", load_model(path), ids, EXACT if dense else CODES))
    return [replace(answer, weights=weights) for answer in answers]


def loads_zero_points() -> bool:
    """Whether the installed versions load what llm-compressor itself made (0.20 does not)."""
    try:
        load_model(MODEL.parent / "ct-w4a16-g32-asym-qwen3")
    except RuntimeError:
        return False
    return True


def gguf(path: Path, ids: list[int]) -> list[Answer]:
    """The format's own Python package through transformers."""
    model = load_model(path.parent, gguf_file=path.name)
    weights = {n: m.weight for n, m in model.named_modules() if n.endswith("proj")}
    return [replace(ran("dequantized", model, ids, EXACT), weights=weights)]


def llama_cpp(path: Path, ids: list[int]) -> list[Answer]:
    tool: Any = pytest.importorskip("llama_cpp")
    model = tool.Llama(str(path), n_ctx=256, logits_all=True, n_threads=1, verbose=False)
    model.eval(ids)
    logits = torch.tensor(model.scores[: len(ids)])
    return [Answer("run", logits, BLOCKS, {"activations": "int8-block32"}, {})]


TEXTLESS = ("rtn", "nf4", "fp4", "llm-int8")
GPTQ = Order("gptq", group=32, format="gptq")
CT = "compressed-tensors"
CASES: dict[str, tuple[Order, Peer]] = {
    "gptq": (GPTQ, gptqmodel),
    "gptq-asym": (Order("gptq", group=32, symmetric=False, format="gptq"), gptqmodel),
    "gptq-v2": (Order("gptq", group=32, symmetric=False, format="gptq-v2"), gptqmodel),
    "gptq-3-bits": (Order("gptq", "w3a16", group=32, format="gptq"), gptqmodel),
    "gptq-8-bits": (Order("gptq", "w8a16", group=-1, format="gptq"), gptqmodel),
    "awq": (Order("awq", group=32), gptqmodel),
    "w4a16": (Order("gptq", "w4a16", CT, group=32), compressed_tensors),
    "w4a16-asym": (Order("awq", "w4a16", CT, group=32), compressed_tensors),
    "w8a16": (Order("gptq", "w8a16", CT, group=-1), compressed_tensors),
    "w8a8": (Order("smoothquant+gptq", "w8a8"), compressed_tensors),
    "w8a8-static": (Order("gptq", "w8a8", static=True), compressed_tensors),
    "fp8": (Order("rtn", "fp8"), compressed_tensors),
    "nf4": (Order("nf4"), bitsandbytes),
    "fp4": (Order("fp4"), bitsandbytes),
    "llm-int8": (Order("llm-int8"), bitsandbytes),
}
TYPES = ("q4_0", "q4_k_m", "iq4_nl")
CASES |= {f"{name}-gguf": (Order("rtn", format=f"gguf:{name}"), gguf) for name in TYPES}
CASES |= {f"{name}-llama.cpp": (Order("rtn", format=f"gguf:{name}"), llama_cpp) for name in TYPES}


@pytest.mark.parametrize("name", CASES)
def test_tools_load_what_was_quantized(name: str, tmp_path: Path) -> None:
    request, peer = CASES[name]
    out = tmp_path / ("model.gguf" if "gguf" in (request.format or "") else "model")
    checkpoint = open_checkpoint(MODEL)
    try:
        text = None if request.method in TEXTLESS else TEXT
        order = replace(request, text=text is not None)
        run_job(QuantizeJob(checkpoint, out, order, text, samples=4, length=64))
    finally:
        checkpoint.close()
    ids = Engine(out, **REFERENCE).tokenizer.encode(PROMPT)
    answers = peer(out, ids)
    assert answers
    for answer in answers:
        check_weights(out, answer.weights)
        ours = Engine(out, **answer.ours).logits(ids)
        assert ours.shape == answer.logits.shape
        difference = (ours - answer.logits).abs() / answer.logits.std()
        found = float(difference.max()), float(difference.mean())
        print(f"{name}, {answer.what}: largest {found[0]:.1e}, mean {found[1]:.1e}")
        assert found[0] <= answer.limits[0] and found[1] <= answer.limits[1]


def check_weights(path: Path, weights: dict[str, Tensor]) -> None:
    checkpoint = open_checkpoint(path)
    try:
        names = {info.name for info in checkpoint.tensors()}
        for name, theirs_NK in weights.items():
            assert f"{name}.weight" in names
            weight: Any = checkpoint.load(f"{name}.weight")
            ours_NK = weight if isinstance(weight, Tensor) else weight.dequantize()
            error = float((ours_NK.float() - theirs_NK).abs().max() / ours_NK.abs().max())
            assert error <= WEIGHT, (name, error)
    finally:
        checkpoint.close()
