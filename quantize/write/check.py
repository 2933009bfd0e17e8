"""Open what was written, and compare it with the model that was to be written.

Shape letters: N output features, K input features.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfbyte.errors import QuantizeError, TokenizerError

from ...engine.models.rope import inverse_frequencies
from ...engine.text.tokenizer_thread import LayersDone
from ...kernels.formats.canonical import ActivationFormat, QuantizedLinear
from ...loaders import open_checkpoint
from ...loaders.base import Checkpoint
from ...loaders.files.folder_files import ModelFolder
from ...loaders.model.checks import expected_tensors
from ...loaders.model.config import ModelConfig, RopeConfig
from ..windows import tokenizer_of
from .folder_format import natural_codes
from .gguf_metadata import without_window

# Relative error of rounding to nearest. A wrong code of 8 bits is off by at least 1 / 255.
_ROUNDING = {"float32": 2.0**-22, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# float16 numbers below its smallest normal one are rounded to multiples of 2 ** -24.
_SMALL = 2.0**-25
# The widest gap in bitsandbytes' table of scales is 0.0141 of its largest number.
_DOUBLE = 0.0142 / 2
_HINT = "this is a bug: please report it, with the model and the options"
_TEXTS = (
    "The quick brown fox jumps over the lazy dog. It's 1984, isn't it?",
    "  def f(x):\n\t\treturn {'a': x ** 2}  # two  spaces\r\n\n\n",
    "Größe, naïve, Ελληνικά, русский, עברית, हिन्दी, 中文字符, 日本語, 한국어",
    "🙂👩‍👩‍👧 ½ ﬁ Å 12345678 3.14159e-10",
)


def check_written(path: Path, model: Checkpoint, progress: LayersDone | None = None) -> None:
    """Compare a written folder or file with the model, weight by weight, config and tokenizer.

    Codes must be equal. What they mean must be, too, but for the rounding of scales to the type
    that the format has for them, of weights where the format's tool rounds each (bitsandbytes),
    and of scales to 8 bits under double quantization. Dense tensors must be equal bit for bit; one
    that has another type than in the model must be it, rounded.

    Args:
        path: what was written.
        model: what was to be written.
        progress: told after each layer.

    Raises:
        QuantizeError: the first difference that was found.
        CheckpointError: what was written cannot be read.
    """
    written = open_checkpoint(path)
    try:
        wanted = without_window(model.config) if written.kind == "gguf" else model.config
        _check_config(path, written.config, wanted)
        _check_tokenizer(path, written, model)
        _check_names(path, written, model)
        double = _double(path)
        layers, done = model.config.num_layers, 0
        for name in expected_tensors(model.config):
            _check_tensor(path, name, written, model, double)
            for checkpoint in (written, model):
                checkpoint.release((name,))
            layer = _layer(name)
            if progress is not None and layer >= done:
                done = layer + 1
                progress(done, layers)
    finally:
        written.close()


def _layer(name: str) -> int:
    """Number of the layer that a tensor belongs to, -1 for none."""
    parts = name.split(".")
    return int(parts[2]) if parts[1:2] == ["layers"] else -1


def _double(path: Path) -> bool:
    """Whether a folder's config says that scales of 4-bit codes are quantized themselves."""
    values = ModelFolder(path).read_json("config.json") if path.is_dir() else None
    said = (values or {}).get("quantization_config") or {}
    return bool(said.get("bnb_4bit_use_double_quant"))


def _wrong(path: Path, name: str, found: object, expected: object) -> QuantizeError:
    return QuantizeError(f"{path}: {name} is {found}; expected {expected}", hint=_HINT)


def _check_names(path: Path, written: Checkpoint, model: Checkpoint) -> None:
    ours, theirs = ({i.name: i.shape for i in c.tensors()} for c in (written, model))
    for name in ours.keys() ^ theirs.keys():
        raise _wrong(path, name, "there" if name in ours else "missing", "as in the model")
    for name, shape in theirs.items():
        if ours[name] != shape:
            raise _wrong(path, name, list(ours[name]), list(shape))


def _check_tensor(
    path: Path, name: str, written: Checkpoint, model: Checkpoint, double: bool
) -> None:
    have, want = written.load(name), model.load(name)
    offsets = [c.config.norm_offset * name.endswith("norm.weight") for c in (written, model)]
    if isinstance(have, QuantizedLinear):
        if not isinstance(want, QuantizedLinear):
            raise _wrong(path, name, "quantized", "dense")
        _check_quantized(path, name, have, want, double)
        return
    if isinstance(want, QuantizedLinear):
        expected = want.dequantize(have.dtype)
    elif offsets[0] != offsets[1]:
        # 1 + w in float32, from which 1 was taken.
        close = torch.allclose(
            have.float() + offsets[0], want.float() + offsets[1], rtol=0, atol=2.0**-24
        )
        if not close:
            raise _wrong(path, name, "another norm", "that of the model")
        return
    else:
        expected = want.to(have.dtype)
    if not _same_bits(have, expected):
        at = int((have != expected).flatten().nonzero()[0])
        found, wanted = (float(x.flatten()[at]) for x in (have, expected))
        raise _wrong(path, f"{name}, element {at},", found, wanted)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    one, other = (x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
    return torch.equal(one, other)


def _check_quantized(
    path: Path, name: str, have: QuantizedLinear, want: QuantizedLinear, double: bool
) -> None:
    if not _same_rule(have.format.act, want.format.act):
        raise _wrong(path, f"the rule of inputs of {name}", have.format.act, want.format.act)
    if have.format.bits == want.format.bits and not torch.equal(
        natural_codes(have), natural_codes(want)
    ):
        at = (natural_codes(have) != natural_codes(want)).nonzero()[0].tolist()
        raise _wrong(path, f"code {at} of {name}", "another", "that of the model")
    ours, theirs = have.dequantize(), want.dequantize()
    if torch.equal(ours, theirs):
        return
    error = (ours - theirs).abs_()
    over = error - _allowed(have, want, theirs, double)
    if float(over.max()) > 0:
        at = int(over.argmax())
        found, wanted = (float(x.flatten()[at]) for x in (ours, theirs))
        place = [at // ours.shape[1], at % ours.shape[1]]
        raise _wrong(path, f"weight {place} of {name}", found, wanted)


def _allowed(
    have: QuantizedLinear, want: QuantizedLinear, value_NK: Tensor, double: bool
) -> Tensor:
    """By how much each weight [N, K] may be off."""
    kind = str(have.scales.dtype).removeprefix("torch.")
    share = _ROUNDING[kind]
    for form in (have.format, want.format):
        share += _ROUNDING[form.rounds or "float32"]
    allowed = value_NK.abs() * share
    top = float(1 << have.format.bits)
    if kind == "float16":
        allowed += _SMALL * top
    if "float16" in (have.format.rounds, want.format.rounds):
        allowed += _SMALL
    if double and have.format.zero == "table":
        scales = want.scales.float()
        reach = float((scales - scales.mean()).abs().max())
        allowed += _DOUBLE * reach * max(abs(entry) for entry in have.format.table)
    return allowed


def _same_rule(a: ActivationFormat | None, b: ActivationFormat | None) -> bool:
    if a is None or b is None:
        return a is b
    if (a.kind, a.symmetric, a.scale is None) != (b.kind, b.symmetric, b.scale is None):
        return False
    if a.scale is None or b.scale is None:
        return a.top == b.top or not a.symmetric
    return math.isclose(a.scale, b.scale, rel_tol=1e-6) and a.zero == b.zero


def _check_config(path: Path, have: ModelConfig, want: ModelConfig) -> None:
    ours, theirs = model_facts(have), model_facts(want)
    for key, value in theirs.items():
        if not _alike(ours[key], value):
            raise _wrong(path, f"{key} of the model", ours[key], value)


def model_facts(config: ModelConfig) -> dict[str, Any]:
    """What a model computes, by name and in one spelling for folders and GGUF files.

    Left out is the name, the type that it computes with (GGUF files do not say it) and what follows
    from that, the ends of a text, which are compared with the tokenizer, and where norms keep
    their 1, which is looked at with the norms.
    """
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    left_out = ("name", "dtype", "embedding_scale", "norm_offset", "eos_token_ids")
    for key in (*left_out, "rope", "rope_local"):
        del values[key]
    values["attention_scale"] = config.score_scale
    windows = [0 if w >= config.max_position else w for w in config.sliding_window]
    values["sliding_window"] = tuple(windows) if any(windows) else ()
    values["rope"] = _frequencies(config.rope, config)
    local = config.rope_local
    values["rope_local"] = None if local is None else _frequencies(local, config)
    return values


def _frequencies(rope: RopeConfig, config: ModelConfig) -> tuple[Any, ...]:
    dim = rope.rotary_dim or config.head_dim
    rest: tuple[Any, ...] = ()
    if rope.kind in ("dynamic", "longrope", "yarn"):
        plain = dataclasses.replace(rope, rotary_dim=dim)
        rest = dataclasses.astuple(plain)
    return (*inverse_frequencies(rope, dim, config.max_position).tolist(), *rest)


def _alike(a: Any, b: Any) -> bool:
    """Equal, but for the rounding of floats."""
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-5)
    return a == b


def _check_tokenizer(path: Path, written: Checkpoint, model: Checkpoint) -> None:
    try:
        source = model.tokenizer()
    except TokenizerError:
        return  # there is none to carry over
    found = written.tokenizer()
    for key in ("bos_id", "add_bos", "chat_template", "chat_templates"):
        if getattr(found, key) != getattr(source, key):
            raise _wrong(path, f"{key} of the tokenizer", getattr(found, key), getattr(source, key))
    ours, theirs = tokenizer_of(written), tokenizer_of(model)
    same = ["vocab_size", "eos_ids", "special_ids"]
    if written.kind == "gguf":
        # It has a token for every row of the embedding, and readers know some ends by their names.
        same = ["special_ids"]
        if not ours.eos_ids >= theirs.eos_ids:
            raise _wrong(path, "eos_ids of the tokenizer", ours.eos_ids, theirs.eos_ids)
    for key in same:
        if getattr(ours, key) != getattr(theirs, key):
            raise _wrong(path, f"{key} of the tokenizer", getattr(ours, key), getattr(theirs, key))
    for token in range(theirs.vocab_size):
        if ours.token_bytes(token) != theirs.token_bytes(token):
            pair = ours.token_bytes(token), theirs.token_bytes(token)
            raise _wrong(path, f"token {token}", *pair)
    for text in _TEXTS:
        if ours.encode(text) != theirs.encode(text):
            raise _wrong(path, f"the ids of {text!r}", ours.encode(text), theirs.encode(text))
