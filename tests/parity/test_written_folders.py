"""Folders of ours in the tools that define their formats, on the CPU, against our own logits.

    python -m pytest -m slow tests/parity/test_written_folders.py

wants ``compressed-tensors`` and ``bitsandbytes``, and ``gptqmodel`` with ``optimum`` for GPTQ and
AWQ; a tool that is missing is skipped. Its arithmetic is float32 where the tool allows it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from halfbyte import Engine
from halfbyte.kernels.formats.canonical import ActivationFormat, QuantizedLinear, WeightFormat
from halfbyte.kernels.formats.code_tables import FP4, NF4
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.model.quantizing import is_decoder_linear
from halfbyte.loaders.model.rtn import rtn_asymmetric, rtn_symmetric, rtn_table
from halfbyte.quantize.pipeline import Overlay
from halfbyte.quantize.write.awq import AWQFormat
from halfbyte.quantize.write.bitsandbytes import BitsAndBytesFormat
from halfbyte.quantize.write.check import check_written
from halfbyte.quantize.write.compressed_tensors import CompressedTensorsFormat
from halfbyte.quantize.write.folder import write_folder
from halfbyte.quantize.write.folder_format import FolderFormat
from halfbyte.quantize.write.gptq import GPTQFormat

pytestmark = pytest.mark.slow

FIXTURES = Path(__file__).parents[1] / "fixtures"
LLAMA = FIXTURES / "fp16-llama-spm"
GGUFS = sorted(path.name for path in FIXTURES.glob("gguf-*"))
LAST = "model.layers.1.mlp.down_proj.weight"
TEXT = "The quick brown fox, 1984."
Make = Callable[[str, Tensor], QuantizedLinear]
CT = CompressedTensorsFormat()


def halves(made: QuantizedLinear) -> QuantizedLinear:
    """With scales that float16 holds, as the formats of 4 bits have them."""
    made.scales = made.scales.half()
    return made


def symmetric(bits: int, group: int) -> Make:
    return lambda name, w: halves(rtn_symmetric(name, w, bits, group))


def asymmetric(bits: int, group: int) -> Make:
    return lambda name, w: halves(rtn_asymmetric(name, w, bits, group))


def eight(act: ActivationFormat | None) -> Make:
    return lambda name, w: rtn_symmetric(name, w, 8, -1, act)


def fp8(name: str, weight: Tensor) -> QuantizedLinear:
    scales = weight.float().abs().amax(1, keepdim=True) / 448
    codes = (weight.float() / scales).to(torch.float8_e4m3fn).view(torch.uint8)
    form = WeightFormat(8, -1, "e4m3", act=ActivationFormat("e4m3", top=448.0))
    return QuantizedLinear(name, form, codes, scales, None, weight.shape[1])


def table(values: tuple[float, ...]) -> Make:
    return lambda name, w: rtn_table(name, w, 64, values)


def written(source: Path, make: Make, form: FolderFormat, out: Path) -> Overlay:
    model = Overlay(open_checkpoint(source))
    for info in model.tensors():
        if is_decoder_linear(info.name, info.shape):
            weight = model.load(info.name)
            dense = weight if isinstance(weight, Tensor) else weight.dequantize()
            model.weights[info.name] = make(info.name, dense)
    write_folder(model, form, out)
    check_written(out, model)
    return model


def both(out: Path) -> tuple[Tensor, Tensor]:
    """Our logits and those of transformers, [T, V]."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    engine = Engine(out, backend="reference", dtype="float32")
    ids = engine.tokenizer.encode(TEXT)
    assert AutoTokenizer.from_pretrained(out)(TEXT).input_ids == ids
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].float()
    return engine.logits(ids).float(), theirs


def differences(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """The largest one, and the mean one as a share of the deviation."""
    error = (ours - theirs).abs()
    return float(error.max()), float(error.mean() / theirs.std())


@pytest.mark.parametrize(
    ("make", "largest"),
    [
        (symmetric(4, 32), 1e-4),
        (symmetric(3, 32), 1e-4),
        (symmetric(8, -1), 1e-4),
        (eight(ActivationFormat()), 0.2),  # inputs at the edge of rounding
        (eight(ActivationFormat(scale=0.05)), 0.2),
        (fp8, 0.2),
    ],
)
def test_compressed_tensors(make: Make, largest: float, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    written(LLAMA, make, CT, tmp_path / "out")
    ours, theirs = both(tmp_path / "out")
    most, mean = differences(ours, theirs)
    assert most <= largest and mean <= 0.02


@pytest.mark.parametrize("name", GGUFS)
def test_models_of_gguf_files(name: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    source = min((FIXTURES / name).glob("*.gguf"))
    written(source, symmetric(4, 32), CT, tmp_path / "out")
    ours, theirs = both(tmp_path / "out")
    assert differences(ours, theirs)[0] <= 1e-4


def test_zero_points_of_compressed_tensors(tmp_path: Path) -> None:
    """By the library's own functions: transformers 5.23 cannot load them, from its own tool
    neither (it expects zero points that are not packed).
    """
    peer = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    from safetensors.torch import load_file

    model = written(LLAMA, asymmetric(4, 32), CT, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, want in model.weights.items():
        module = name.removesuffix(".weight")
        shape = torch.Size(stored[f"{module}.weight_shape"].tolist())
        scales = stored[f"{module}.weight_scale"].float()
        codes = peer.unpack_from_int32(stored[f"{module}.weight_packed"], 4, shape)
        zeros = peer.unpack_from_int32(
            stored[f"{module}.weight_zero_point"], 4, scales.shape, packed_dim=0
        )
        spread = (x.float().repeat_interleave(32, 1) for x in (scales, zeros))
        s, z = spread
        assert torch.equal((codes.float() - z) * s, want.dequantize())


@pytest.mark.parametrize(
    ("make", "double"), [(table(NF4), False), (table(FP4), True), (eight(None), False)]
)
def test_bitsandbytes(make: Make, double: bool, tmp_path: Path) -> None:
    peer: Any = pytest.importorskip("bitsandbytes")
    model = written(LLAMA, make, BitsAndBytesFormat(double), tmp_path / "out")
    read = open_checkpoint(tmp_path / "out")
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    four = {n: m for n, m in loaded.named_modules() if isinstance(m, peer.nn.Linear4bit)}
    assert len(four) == (
        0 if make(LAST, torch.ones(2, 64)).format.bits == 8 else len(model.weights)
    )
    for name, module in four.items():
        own: Any = module.weight
        state, want = own.quant_state, read.load(f"{name}.weight")
        assert isinstance(want, QuantizedLinear)
        have = peer.functional.dequantize_4bit(own.data, state)
        assert torch.equal(have.float().view(want.shape), want.dequantize())
    ours, theirs = both(tmp_path / "out")
    most, mean = differences(ours, theirs)
    # Weights are equal, but the tool's products on a CPU are 1 % off, in float32, too; and
    # LLM.int8() rounds inputs to 8 bits.
    assert most <= 0.5 and mean <= 0.03


@pytest.mark.parametrize(
    ("make", "form"),
    [
        (symmetric(4, 32), GPTQFormat()),
        (asymmetric(4, 32), GPTQFormat()),
        (asymmetric(4, 32), GPTQFormat("v2")),
        (asymmetric(4, 32), AWQFormat()),
    ],
)
def test_gptqmodel(make: Make, form: FolderFormat, tmp_path: Path) -> None:
    pytest.importorskip("gptqmodel")
    pytest.importorskip("optimum")
    written(LLAMA, make, form, tmp_path / "out")
    ours, theirs = both(tmp_path / "out")
    most, mean = differences(ours, theirs)
    assert most <= 0.05 and mean <= 5e-3  # float16 inside
