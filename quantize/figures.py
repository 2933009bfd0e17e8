"""Measured figures of the theory and of the methods that need one matrix at a time.

    python -m halfbyte.quantize.figures
    python -m halfbyte.quantize.figures --model FOLDER --text FILE [--layers 0,7,15] [--windows 8]

The first prints signal-to-noise ratios of Gaussian numbers for 2 to 8 bits. The second takes a text
through a dense model and prints, for each method, the error of the outputs of all matrices of some
layers, and of int8 inputs by each rule for static ranges.

Shape letters: N rows, K columns, T tokens.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..engine.config import EngineConfig
from ..kernels.formats.activations import quantize_activations
from ..kernels.formats.weight_format import ActivationFormat
from ..loaders import open_checkpoint
from ..loaders.base import Checkpoint
from .hessian import Hessian
from .lloyd_max import lloyd_max, nearest_entries
from .methods.adaround import AdaRoundQuantizer
from .methods.base import Quantizer, UniformCodes
from .methods.codebook import BlockTableQuantizer, LloydMaxQuantizer
from .methods.gptq import GPTQQuantizer
from .methods.llm_int8 import LLMInt8Quantizer
from .methods.nearest import NearestQuantizer
from .ranges import InputRange, RangeRule
from .theory import predicted_sqnr, round_uniform, sqnr
from .walk import StackedLinear, Walk
from .windows import cut_windows, read_text, tokenizer_of

_SYMMETRIC, _ASYMMETRIC = UniformCodes(4, 64, True), UniformCodes(4, 64, False)
_METHODS: dict[str, Quantizer] = {
    "LLM.int8(), rows": LLMInt8Quantizer(),
    "nearest, 4 bits, g64, symmetric": NearestQuantizer(_SYMMETRIC),
    "nearest, 4 bits, g64, asymmetric": NearestQuantizer(_ASYMMETRIC),
    "FP4, double": BlockTableQuantizer("fp4"),
    "NF4": BlockTableQuantizer("nf4", double=False),
    "NF4, double": BlockTableQuantizer("nf4"),
    "Lloyd-Max, 3 bits, g64": LloydMaxQuantizer(3),
    "Lloyd-Max, 4 bits, g64": LloydMaxQuantizer(4),
    "GPTQ, 4 bits, g64, symmetric": GPTQQuantizer(_SYMMETRIC),
    "AdaRound, 4 bits, g64, symmetric": AdaRoundQuantizer(_SYMMETRIC),
    "AdaRound without sweeps": AdaRoundQuantizer(_SYMMETRIC, sweeps=0),
}
_RULES: tuple[RangeRule, ...] = ("min-max", "percentile", "mse", "kl")


def gaussian_table(count: int = 200_000) -> Iterator[str]:
    """Lines of a table: dB of Gaussian numbers by bits, uniform grids against Lloyd-Max."""
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    x = torch.special.ndtri(places).float()
    peak = float(x.max() / x.square().mean().sqrt())
    yield f"{count} Gaussian numbers, max {peak:.2f} sigma; dB"
    yield "bits   formula   min-max   best uniform   Lloyd-Max"
    for bits in range(2, 9):
        full, best = (
            round_uniform(x.view(1, -1), bits, "tensor", rule=rule).values.view(-1)
            for rule in ("min-max", "mse")
        )
        table = lloyd_max(x, 1 << bits)
        entries = table[nearest_entries(x, table).int()]
        found = predicted_sqnr(bits, peak), sqnr(x, full), sqnr(x, best), sqnr(x, entries)
        yield f"{bits:4}" + "".join(
            f"{db:{w}.2f}" for db, w in zip(found, (10, 10, 15, 12), strict=True)
        )


class _Sums:
    """Squared errors and squares of outputs of a method, and its seconds."""

    def __init__(self) -> None:
        self.relative: list[float] = []
        self.seconds = 0.0
        self.bits, self.weights = 0, 0


def compare_methods(
    checkpoint: Checkpoint, ids: tuple[tuple[int, ...], ...], layers: set[int]
) -> Iterator[str]:
    """Lines of two tables: relative output errors of methods, and of static ranges of inputs.

    Args:
        checkpoint: a dense model.
        ids: windows of a text.
        layers: whose matrices are taken.
    """
    walk = Walk(checkpoint, EngineConfig(activations="float"), ids)
    sums = {name: _Sums() for name in _METHODS}
    ranges: dict[str, list[float]] = {}
    for layer in range(max(layers) + 1):
        walk.load_layer()
        if layer in layers:
            hessians: dict[str, Hessian] = {}
            samples: dict[str, Tensor] = {}

            def watch(
                linear: StackedLinear,
                x_TK: Tensor,
                y_TN: Tensor,
                hessians: dict[str, Hessian] = hessians,
                samples: dict[str, Tensor] = samples,
            ) -> None:
                first = linear.modules[0]
                hessians.setdefault(first, Hessian(first, x_TK.shape[1])).add(x_TK)
                samples[first] = x_TK.float().clone()

            walk.run_layer(watch)
            for linear, _ in {id(v[0]): v for v in walk.linears.values()}.values():
                hessian = hessians[linear.modules[0]]
                for module in linear.modules:
                    weight = checkpoint.load(f"{module}.weight")
                    assert isinstance(weight, Tensor)
                    _judge(module, weight.float(), hessian, sums)
                _judge_ranges(samples[linear.modules[0]], ranges)
        else:
            walk.run_layer()
    yield "method                               output error     bits   s"
    for name, found in sums.items():
        mean = sum(found.relative) / len(found.relative)
        bits = found.bits / found.weights
        yield f"{name:37}{mean:10.4f}{bits:12.2f}{found.seconds:6.1f}"
    yield "int8 inputs                          relative error"
    for name, found in ranges.items():
        yield f"{name:37}{sum(found) / len(found):10.4f}"


def _judge(module: str, weight_NK: Tensor, hessian: Hessian, sums: dict[str, _Sums]) -> None:
    """Relative error of the outputs of each method, from the inputs' second moments."""
    moments = hessian.mean()
    whole = float(((weight_NK @ moments) * weight_NK).sum())
    for name, method in _METHODS.items():
        began = time.process_time()
        found = method.quantize(module, weight_NK, hessian)
        sums[name].seconds += time.process_time() - began
        error = found.dequantize() - weight_NK
        sums[name].relative.append((float(((error @ moments) * error).sum()) / whole) ** 0.5)
        sums[name].bits += 8 * found.nbytes
        sums[name].weights += weight_NK.numel()


def _judge_ranges(x_TK: Tensor, found: dict[str, list[float]]) -> None:
    """Relative error of inputs rounded to int8."""
    seen = InputRange("inputs")
    seen.add(x_TK)
    rules = {"dynamic, by token": ActivationFormat()}
    for symmetric in (True, False):
        side = "symmetric" if symmetric else "asymmetric"
        rules |= {f"static, {rule}, {side}": seen.act_format(rule, symmetric) for rule in _RULES}
    for name, rule in rules.items():
        codes, scale = quantize_activations(x_TK, rule)
        error = float((codes * scale - x_TK).norm() / x_TK.norm())
        found.setdefault(name, []).append(error)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m halfbyte.quantize.figures")
    parser.add_argument("--model", type=Path, help="a dense checkpoint")
    parser.add_argument("--text", type=Path, help="a text to take through it")
    parser.add_argument("--layers", default="0,7,15", help="numbers from 0")
    parser.add_argument("--windows", type=int, default=8, help="of 512 tokens")
    args = parser.parse_args()
    if args.model is None:
        lines = gaussian_table()
    elif args.text is None:
        parser.error("--model needs --text")
    else:
        checkpoint = open_checkpoint(args.model)
        text = read_text(args.text)
        windows = cut_windows(tokenizer_of(checkpoint), text, 512, args.windows)
        layers = {int(part) for part in args.layers.split(",")}
        lines = compare_methods(checkpoint, windows.ids, layers)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    _main()
