"""What rounded activations cost in accuracy: ``python -m halfbyte.bench.activations MODEL...``.

The same weights answer the same windows of a text twice, with float32 activations and with
rounded ones; the figures are the divergence KL(float || rounded) of the next token's distribution
at every position, in nats, and how often both have the same likeliest token. With
``--peer PYTHON``, a Python that has llama-cpp-python, the same is measured of llama.cpp on the
same file against our float32 activations: what an engine of that kind adds.

    python -m halfbyte.bench.activations smollm2 other.gguf --text FILE --out DIR --peer PYTHON

``--backend reference`` takes the rule at its word, without kernels; it is slow.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from halfbyte.errors import ConfigError

from ..engine.backends import make_backend
from ..engine.backends.base import Backend
from ..engine.backends.reference import ReferenceLinear, ReferenceOps
from ..engine.config import EngineConfig
from ..engine.models.decoder import Decoder, block_states
from ..engine.models.rope import Rotaries
from ..engine.run.kv_cache import KVCache
from ..engine.run.rows import Rows
from ..engine.text.tokenizer import Tokenizer
from ..kernels.formats.canonical import Weight
from ..kernels.formats.weight_format import InputRule
from ..loaders import open_checkpoint
from ..loaders.base import Checkpoint
from ..loaders.model.quantizing import QuantizingCheckpoint
from ..loaders.model.schemes import SchemeName
from ..loaders.store.model_store import resolve_model
from .machine import machine_info

_SCHEMA = 1
_ROWS, _BLOCK = 64, 64
# What a mode may add: docs/performance.md.
MOST_ADDED = 0.005


@dataclass(slots=True)
class Divergence:
    """Distributions of the next token against those of float32 activations, window by window.

    Attributes:
        kl: nats at each position of each window.
        same: whether the likeliest token is the same, at each position.
    """

    kl: list[list[float]] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)

    def add(self, base_TV: Tensor, other_TV: Tensor) -> None:
        """Compare the logits [T, V] of one window."""
        window: list[float] = []
        for base, other in zip(base_TV.split(_ROWS), other_TV.split(_ROWS), strict=True):
            # float64: float32's own rounding of a sum over a vocabulary is some 1e-6 nats.
            p, q = base.double().log_softmax(-1), other.double().log_softmax(-1)
            window += (p.exp() * (p - q)).sum(-1).tolist()
            self.same += (base.argmax(-1) == other.argmax(-1)).tolist()
        self.kl.append(window)

    def figures(self) -> dict[str, Any]:
        """Mean, 99th percentile and largest divergence; share of the same likeliest token."""
        every = sorted(value for window in self.kl for value in window)
        means = [math.fsum(window) / len(window) for window in self.kl]
        return {
            "kl_mean": math.fsum(every) / len(every),
            "kl_p99": every[math.ceil(0.99 * len(every)) - 1],
            "kl_max": every[-1],
            "kl_window_means": means,
            "same_top1": sum(self.same) / len(self.same),
        }


class PeerLogits:
    """llama-cpp-python in an interpreter of its own.

    Args:
        python: that interpreter.
        model: a GGUF file.
        threads: of the peer.
        context: tokens of the longest window.

    Raises:
        ConfigError: it does not start, or cannot load the model.
    """

    def __init__(self, python: Path, model: Path, threads: int, context: int) -> None:
        script = Path(__file__).parent / "peers" / "llama_cpp_logits.py"
        self._folder = tempfile.TemporaryDirectory(prefix="halfbyte-logits-")
        # As text, from an empty folder: the script's own folder has a module of the peer's name.
        command = [str(python.absolute()), "-c", script.read_text(encoding="utf-8")]
        self._process = subprocess.Popen(
            [*command, str(model.resolve()), str(threads), str(context)],
            cwd=self._folder.name,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version: str = json.loads(self._line())["version"]

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Float32 logits [T, V] at every position."""
        out = Path(self._folder.name) / "logits.npy"
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"tokens": list(tokens), "out": str(out)}) + "\n")
        self._process.stdin.flush()
        self._line()
        return torch.from_numpy(np.load(out))

    def close(self) -> None:
        """End the process and delete its files."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ConfigError(
                f"llama-cpp-python stopped with code {self._process.wait()}",
                hint="--peer is to be a Python that has it; its own messages are above",
            )
        return line


def windows(tokens: Sequence[int], count: int, length: int, bos: int | None) -> Iterator[list[int]]:
    """``count`` windows of ``length`` tokens, evenly spread over a text, each with ``bos`` first.

    Raises ConfigError for a text that is too short.
    """
    own = length - (bos is not None)
    if len(tokens) < count * own:
        raise ConfigError(
            f"the text has {len(tokens)} tokens; {count} windows need {count * own}",
            hint="give a longer --text, or fewer or shorter windows",
        )
    for index in range(count):
        start = index * len(tokens) // count
        yield [*([] if bos is None else [bos]), *tokens[start : start + own]]


class KeepingOps(ReferenceOps):
    """The reference, whose weights are dequantized once and kept: much memory for much speed.

    Args:
        kept: dequantized weights by canonical name and shape; two networks of one checkpoint may
            share them.
        activations: how inputs of weight-only quantized matrices are rounded.
    """

    def __init__(self, kept: dict[object, Tensor], activations: InputRule) -> None:
        super().__init__(torch.float32, activations)
        self._kept = kept

    def pack(self, weight: Weight, bias: Tensor | None = None) -> ReferenceLinear:
        """A weight [N, K] that is dequantized at its first use."""
        return KeptLinear(super().pack(weight, bias).weight, bias, self._kept)


@dataclass(slots=True)
class KeptLinear(ReferenceLinear):
    """A reference weight [N, K] whose dense form is kept.

    Attributes:
        kept: where.
    """

    kept: dict[object, Tensor]

    def dense(self, dtype: torch.dtype) -> Tensor:
        """[N, K] in ``dtype``, computed once."""
        if isinstance(self.weight, Tensor):
            return ReferenceLinear.dense(self, dtype)
        key = self.weight.name, self.shape, dtype
        if key not in self.kept:
            self.kept[key] = ReferenceLinear.dense(self, dtype)
        return self.kept[key]


# Tokens whose logits, over the whole vocabulary, are in memory at once.
_CHUNK = 256


class Model:
    """A network that gives logits.

    Args:
        checkpoint: of its weights.
        backend: computes them.
    """

    def __init__(self, checkpoint: Checkpoint, backend: Backend[Any]) -> None:
        self._network = Decoder(checkpoint.config, checkpoint, backend)
        self._rotary = Rotaries(checkpoint.config)

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Float32 logits [T, V] at every position."""
        pieces = _prompt_logits(self._network, self._rotary, tokens, _BLOCK, _CHUNK)
        return torch.cat(list(pieces))


def _prompt_logits(
    model: Decoder, rotary: Rotaries, token_ids: Sequence[int], block_size: int, chunk: int
) -> Iterator[Tensor]:
    """Float32 logits [T, V] at every position, on a KV cache of its own, in pieces [<= T, V].

    ``chunk`` tokens are computed at a time, as in serving; the last piece may be shorter.
    """
    total, backend = len(token_ids), model.backend
    blocks = -(-total // block_size)
    kv = KVCache(block_states(model.config), blocks, block_size, backend.kv_dtype, backend.device)
    executor = backend.executor(model, kv, 0)
    rows = Rows(1, total, block_size, rotary)
    rows.tokens[0, :total] = torch.tensor(token_ids)
    rows.block_tables[0] = torch.arange(blocks)
    rows.prompt_lengths[0] = total
    for start in range(0, total, chunk):
        step = rows.step([(0, start, min(chunk, total - start))], None)
        yield executor.run(step).to("cpu", torch.float32)


def open_models(
    checkpoint: Checkpoint, backend: Literal["reference", "cpu_c"], rule: InputRule, threads: int
) -> tuple[Model, Model, str]:
    """The model with float32 activations and with rounded ones, and how they compute."""
    kept: dict[object, Tensor] = {}
    found: list[Backend[Any]] = []
    rules: tuple[InputRule, InputRule] = ("float", rule)
    for one in rules:
        made = make_backend(
            EngineConfig(backend=backend, dtype="float32", activations=one, threads=threads)
        )
        if backend == "reference":
            ops = KeepingOps(kept, one)
            made = replace(made, packer=ops, ops=ops)
        found.append(made)
    detail = f"{found[1].name}: {found[1].detail}"
    return Model(checkpoint, found[0]), Model(checkpoint, found[1]), detail


def measure_model(model: str, text: str, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one model as plain JSON types."""
    path = resolve_model(model)
    torch.set_num_threads(args.threads)
    rounded, peer = Divergence(), Divergence()
    nats: list[float] = []
    checkpoint: Checkpoint = open_checkpoint(path)
    try:
        if args.quantize is not None:
            checkpoint = QuantizingCheckpoint(checkpoint, args.quantize)
        base, other, detail = open_models(checkpoint, args.backend, args.activations, args.threads)
        tokenizer = Tokenizer.from_source(checkpoint.tokenizer(), checkpoint.config.vocab_size)
        formats = weights_by_format(checkpoint)
    finally:
        checkpoint.close()
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    tokens = tokenizer.encode(text, add_bos=False, parse_special=False)
    process = PeerLogits(args.peer, path, args.threads, args.tokens) if args.peer else None
    for index, window in enumerate(windows(tokens, args.windows, args.tokens, bos)):
        want = base.logits(window)
        following = torch.tensor(window[1:]).unsqueeze(1)
        nats += (-want[:-1].log_softmax(-1).gather(1, following)).flatten().tolist()
        rounded.add(want, other.logits(window))
        if process is not None:
            peer.add(want, process.logits(window))
        print(f"{model}: window {index + 1} of {args.windows}", file=sys.stderr)
    found: dict[str, Any] = {
        "file": path.name,
        "weights": formats,
        "quantize": args.quantize,
        "backend": detail,
        "windows": args.windows,
        "tokens": args.tokens,
        "nats_per_token": math.fsum(nats) / len(nats),
        args.activations: rounded.figures(),
    }
    if process is not None:
        process.close()
        found["llama.cpp"] = peer.figures() | {"version": process.version}
        found["more_than_llama.cpp"] = difference(rounded, peer)
    return found


def weights_by_format(checkpoint: Checkpoint) -> dict[str, int]:
    """Elements of matrices by the file's name of their format, those that are dense among them."""
    found: dict[str, int] = {}
    for info in checkpoint.tensors():
        if len(info.shape) == 2:
            found[info.label] = found.get(info.label, 0) + math.prod(info.shape)
    return found


def difference(ours: Divergence, theirs: Divergence) -> dict[str, float]:
    """Mean difference of the divergences of the same positions, and its standard error.

    Positions of a window depend on one another, so the error is that of the windows' means.
    """
    pairs = zip(ours.kl, theirs.kl, strict=True)
    means = [(math.fsum(a) - math.fsum(b)) / len(a) for a, b in pairs]
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    return {"mean": statistics.fmean(means), "standard_error": error}


def table(results: Sequence[dict[str, Any]], activations: str) -> str:
    """A markdown table, a line for each model, with what the figures decide."""
    lines = [
        "| model | nats a token | KL mean | KL p99 | same top-1 "
        "| llama.cpp: KL mean | KL p99 | same top-1 | adds little enough |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for found in results:
        ours, peer = found[activations], found.get("llama.cpp")
        small = ours["kl_mean"] <= MOST_ADDED
        if peer is not None:
            more = found["more_than_llama.cpp"]
            small = small and more["mean"] <= 2 * more["standard_error"]
        cells = [_stem(found), f"{found['nats_per_token']:.3f}", *_cells(ours), *_cells(peer)]
        lines.append(f"| {' | '.join(cells)} | {'yes' if small else 'no'} |")
    return "\n".join(lines)


def _cells(figures: dict[str, Any] | None) -> list[str]:
    if figures is None:
        return ["", "", ""]
    mean, high = figures["kl_mean"], figures["kl_p99"]
    return [f"{mean:.5f}", f"{high:.4f}", f"{figures['same_top1']:.2%}"]


def _stem(found: dict[str, Any]) -> str:
    """The name of the file, and the scheme that rounded its weights on load."""
    scheme = found["quantize"]
    return Path(found["file"]).stem + (f"-{scheme}" if scheme else "")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparison, print its table, and write a JSON file for each model."""
    parser = argparse.ArgumentParser(prog="halfbyte.bench.activations", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--text", type=Path, required=True, help="a UTF-8 file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files")
    rules = [rule for rule in get_args(InputRule) if rule != "float"]
    parser.add_argument("--activations", default="int8-block32", choices=rules)
    parser.add_argument("--backend", default="reference", choices=["reference", "cpu_c"])
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512, help="of a window")
    parser.add_argument("--quantize", choices=get_args(SchemeName), default=None)
    parser.add_argument("--peer", type=Path, help="a Python that has llama-cpp-python")
    parser.add_argument("--threads", type=int, default=2, help="of both")
    args = parser.parse_args(argv)
    text = args.text.read_text(encoding="utf-8")
    machine, results = machine_info(), []
    args.out.mkdir(parents=True, exist_ok=True)
    for model in args.models:
        found = measure_model(model, text, args)
        results.append(found)
        shown = {"schema": _SCHEMA, "machine": machine, **found}
        (args.out / f"{_stem(found)}.json").write_text(json.dumps(shown, indent=1) + "\n")
    print(table(results, args.activations))


if __name__ == "__main__":
    main()
