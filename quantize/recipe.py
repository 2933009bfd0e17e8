"""From a method, a scheme and a format by name to the objects that do it.

What cannot go together is refused here, before a weight is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from halfbyte.choices import QuantizeMethod, QuantizeScheme
from halfbyte.errors import ConfigError

from ..kernels.formats.weight_format import ActivationFormat
from ..loaders.base import Checkpoint, TensorInfo
from ..loaders.model.quantizing import DENSE_FORMATS, is_decoder_linear
from .methods.adaround import AdaRoundQuantizer
from .methods.base import Quantizer, UniformCodes
from .methods.codebook import BlockTableQuantizer
from .methods.fp8 import FP8Quantizer
from .methods.gguf import GGUFQuantizer, GPTQBlocksQuantizer
from .methods.gguf_presets import PRESETS, block_types
from .methods.gptq import GPTQQuantizer
from .methods.llm_int8 import LLMInt8Quantizer
from .methods.nearest import NearestQuantizer
from .methods.static import StaticInputs
from .smoothing import AWQScales, Smoother, SmoothQuantScales
from .write.awq import AWQFormat
from .write.bitsandbytes import BitsAndBytesFormat
from .write.card import CardFacts
from .write.compressed_tensors import CompressedTensorsFormat
from .write.folder import write_folder
from .write.folder_format import FolderFormat
from .write.gguf_file import write_gguf
from .write.gguf_metadata import family_of
from .write.gptq import GPTQFormat
from .write.imatrix import read_imatrix

QAT_STEPS = 200
"""Updates of QAT when nothing else is said."""
Write = Callable[[Checkpoint, Path, CardFacts], None]

_OWN = {"nf4": "bitsandbytes", "fp4": "bitsandbytes", "llm-int8": "bitsandbytes"}
_BITS: dict[str, int] = {"w4a16": 4, "w3a16": 3, "w8a16": 8, "w8a8": 8, "fp8": 8}
_UNIFORM = ("rtn", "gptq", "awq", "awq+gptq", "adaround", "qat")
_FORMATS = ("gptq", "gptq-v2", "awq", "compressed-tensors", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for; None = what goes with the rest.

    Attributes:
        method: how codes are found.
        scheme: what becomes of weights and inputs.
        format: one of ``gptq``, ``gptq-v2``, ``awq``, ``compressed-tensors``, ``bitsandbytes`` or
            ``gguf:`` and a type.
        bits: of a weight, in place of a scheme's.
        group: columns that share a scale, -1 = all.
        symmetric: without zero points.
        static: inputs of W8A8 are rounded by one scale that calibration chooses.
        steps: of QAT.
        text: whether there is text to calibrate on.
        imatrix: an importance matrix of llama.cpp, for GGUF types.
    """

    method: QuantizeMethod = "gptq"
    scheme: QuantizeScheme | None = None
    format: str | None = None
    bits: int | None = None
    group: int | None = None
    symmetric: bool | None = None
    static: bool = False
    steps: int | None = None
    text: bool = True
    imatrix: Path | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """What does it.

    Attributes:
        quantizer: finds the codes of a matrix.
        smoother: moves scales into ops before, or None.
        matrices: of the layers, those that are quantized.
        others: matrices outside the layers that are quantized, too, without inputs.
        write: writes the model to a path that is not there yet.
        settings: everything as it was settled, by name.
        file: the output is one file.
        trained: what QAT trains codes of; None = ``quantizer`` finds them.
        folder: how a folder has each matrix; None for GGUF files.
    """

    quantizer: Quantizer
    smoother: Smoother | None
    matrices: frozenset[str]
    others: tuple[str, ...]
    write: Write
    settings: dict[str, object]
    file: bool = False
    trained: UniformCodes | None = None
    folder: FolderFormat | None = None


def make_recipe(request: Order, model: Checkpoint) -> Recipe:
    """Settle what was left open, and refuse what cannot be.

    Raises:
        ConfigError: names the options that contradict each other, or a model that is quantized
            already.
    """
    if request.steps is not None and request.method != "qat":
        raise ConfigError(f"--steps is for --method qat, not {request.method}")
    linears = _dense_linears(model)
    form = request.format or _OWN.get(request.method) or _default_format(request)
    if request.imatrix is not None and (not form.startswith("gguf:") or request.method != "rtn"):
        raise ConfigError("--imatrix goes with --method rtn and --format gguf:...")
    if form.startswith("gguf:"):
        return _gguf(request, form.removeprefix("gguf:"), model, linears)
    if form not in _FORMATS:
        raise ConfigError(
            f"--format {form}; expected one of {', '.join(_FORMATS)}, or gguf: and one of "
            f"{', '.join(PRESETS)}"
        )
    own = _OWN.get(request.method)
    if own is not None or form == "bitsandbytes":
        stacked = bool(family_of(model.config).hf.stacked)
        return _tables(request, form, own, linears, stacked)
    if request.method == "lloyd-max":
        raise ConfigError(
            "no file format holds the tables that --method lloyd-max makes for each matrix",
            hint="judge it from Python with quantize_model; nf4 is a table that files can name",
        )
    return _uniform(request, form, linears)


def _default_format(request: Order) -> str:
    if request.scheme in ("w8a8", "fp8") or request.method.startswith("smoothquant"):
        return "compressed-tensors"
    if request.method.startswith("awq") and request.bits in (None, 4):
        return "awq"
    # Version 1 has no unambiguous zero point of 0, and GPTQModel takes none of other tools.
    return "gptq-v2" if request.symmetric is False else "gptq"


def _dense_linears(model: Checkpoint) -> list[TensorInfo]:
    linears = [info for info in model.tensors() if is_decoder_linear(info.name, info.shape)]
    already = sorted({info.label for info in linears} - set(DENSE_FORMATS))
    if already:
        raise ConfigError(
            f"{model.path} is quantized already: {', '.join(already[:5])}",
            hint="give the model that it was made from",
        )
    return linears


def _tables(
    request: Order, form: str, own: str | None, linears: list[TensorInfo], stacked: bool
) -> Recipe:
    """NF4, FP4 and int8 rows as bitsandbytes has them."""
    if own is None:
        raise ConfigError(
            f"--format bitsandbytes holds what nf4, fp4 and llm-int8 make, not {request.method}",
            hint="--method nf4, or another format",
        )
    if form != own:
        raise ConfigError(f"--method {request.method} is written as {own}, not as {form}")
    for name in ("scheme", "bits", "symmetric"):
        if getattr(request, name) is not None:
            raise ConfigError(f"--method {request.method} takes no --{name}")
    _refuse_static(request)
    settings: dict[str, object] = {"method": request.method, "format": form}
    quantizer: Quantizer
    if request.method == "llm-int8":
        quantizer, folder = LLMInt8Quantizer(), BitsAndBytesFormat()
        if request.group is not None:
            raise ConfigError("--method llm-int8 takes no --group: a row has one scale")
    else:
        block = 64 if request.group is None else request.group
        kind: Literal["nf4", "fp4"] = "nf4" if request.method == "nf4" else "fp4"
        # Scales of what a file keeps as one tensor would be nested as a whole, and so change.
        double = not stacked
        quantizer = BlockTableQuantizer(kind, block, double)
        folder = BitsAndBytesFormat(double)
        settings |= {"block": block, "double quantization": double}
    write = _folder_writer(folder)
    return Recipe(quantizer, None, _names(linears), (), write, settings, folder=folder)


def _uniform(request: Order, form: str, linears: list[TensorInfo]) -> Recipe:
    smooth = request.method.startswith("smoothquant")
    scheme = request.scheme or ("w8a8" if smooth else None)
    if smooth and scheme not in ("w8a8", "fp8"):
        raise ConfigError(f"--method {request.method} is for --scheme w8a8 or fp8, not {scheme}")
    inputs = scheme in ("w8a8", "fp8")
    if inputs and (request.method.startswith("awq") or request.method == "qat"):
        raise ConfigError(f"--method {request.method} is for weights alone, not --scheme {scheme}")
    bits = request.bits or _BITS.get(scheme or "", 4)
    if scheme is not None and bits != _BITS[scheme]:
        raise ConfigError(f"--bits {bits} contradicts --scheme {scheme}")
    if not 2 <= bits <= 8:
        raise ConfigError(f"--bits is {bits}; expected 2 to 8")
    if not inputs:
        _refuse_static(request)
    if inputs and form != "compressed-tensors":
        raise ConfigError(f"--scheme {scheme} is written as compressed-tensors, not as {form}")
    if form == "awq" and bits != 4:
        raise ConfigError(f"--format awq holds 4 bits, not {bits}", hint="--format gptq")
    group = request.group if request.group is not None else _usual_group(inputs, linears)
    if group != -1 and (inputs or group < 8):
        expected = "-1, a scale for each row" if inputs else "-1, or at least 8"
        raise ConfigError(f"--group is {group}; expected {expected}")
    if inputs and request.symmetric is False:
        raise ConfigError(f"--asym: weights of --scheme {scheme} have no zero points")
    symmetric = request.symmetric
    if symmetric is None:
        symmetric = inputs or not request.method.startswith("awq")
    codes = UniformCodes(bits, group, symmetric, ActivationFormat() if inputs else None)
    quantizer = _quantizer(request, scheme, codes)
    smoother: Smoother | None = None
    if request.method.startswith("awq"):
        smoother = AWQScales(bits, group, symmetric)
    elif smooth:
        smoother = SmoothQuantScales()
    settings: dict[str, object] = {
        "method": request.method,
        "bits": bits,
        "group": group,
        "symmetric": symmetric,
        "inputs": "float"
        if not inputs
        else f"{scheme}, {'static' if request.static else 'dynamic'}",
        "format": form,
    }
    kinds: dict[str, FolderFormat] = {
        "gptq": GPTQFormat(),
        "gptq-v2": GPTQFormat("v2"),
        "awq": AWQFormat(),
        "compressed-tensors": CompressedTensorsFormat(),
    }
    sample = codes.format()
    if scheme != "fp8":
        for info in linears:
            n, k = info.shape
            kinds[form].check(info.name.removesuffix(".weight"), sample, (n, k))
    write = _folder_writer(kinds[form])
    trained = codes if request.method == "qat" else None
    if trained is not None:
        settings["steps"] = request.steps or QAT_STEPS
    names, folder = _names(linears), kinds[form]
    return Recipe(quantizer, smoother, names, (), write, settings, trained=trained, folder=folder)


def _quantizer(request: Order, scheme: str | None, codes: UniformCodes) -> Quantizer:
    gptq = request.method.endswith("gptq")

    def method(act: ActivationFormat | None) -> Quantizer:
        own = replace(codes, act=act)
        if gptq:
            return GPTQQuantizer(own)
        if request.method == "adaround":
            return AdaRoundQuantizer(own)
        return NearestQuantizer(own, calibrated=request.method == "awq")

    if scheme == "fp8":
        if gptq or request.static or request.method == "adaround":
            what = "--static" if request.static else f"--method {request.method}"
            raise ConfigError(f"{what} is for integer codes, not --scheme fp8", hint="--method rtn")
        return FP8Quantizer()
    if request.static:
        return StaticInputs(method)
    return method(codes.act)


def _gguf(request: Order, preset: str, model: Checkpoint, linears: list[TensorInfo]) -> Recipe:
    """A GGUF type decides bits and groups by itself."""
    if preset not in PRESETS:
        raise ConfigError(f"--format gguf:{preset}; expected gguf: and one of {', '.join(PRESETS)}")
    for name in ("scheme", "bits", "group", "symmetric"):
        if getattr(request, name) is not None:
            raise ConfigError(f"--format gguf:{preset} has its own {name}; leave the option out")
    _refuse_static(request)
    if request.method not in ("rtn", "gptq", "awq", "awq+gptq"):
        raise ConfigError(f"--method {request.method} cannot fill --format gguf:{preset}")
    gptq = request.method.endswith("gptq")
    important = request.text or request.imatrix is not None
    types = block_types(preset, model, important, uniform=gptq)
    known = {}
    if request.imatrix is not None:
        known = read_imatrix(request.imatrix).importance(model)
    quantizer: Quantizer = GPTQBlocksQuantizer(types)
    if not gptq:
        quantizer = GGUFQuantizer(types, request.text and request.imatrix is None, known)
    smoother = AWQScales(4, 32, True) if request.method.startswith("awq") else None
    matrices = _names(linears)
    others = tuple(name for name in types if name not in matrices)
    if not matrices & types.keys():
        raise ConfigError(
            f"--format gguf:{preset}: no matrix has rows that blocks of 32 weights fill",
            hint="a folder format can hold it: --format gptq-v2 --group 16",
        )
    settings: dict[str, object] = {"method": request.method, "format": f"gguf:{preset}"}
    if request.imatrix is not None:
        settings["imatrix"] = request.imatrix.name

    def write(made: Checkpoint, out: Path, card: CardFacts) -> None:
        write_gguf(made, out, PRESETS[preset].file_type)

    chosen = matrices & types.keys()
    return Recipe(quantizer, smoother, chosen, others, write, settings, file=True)


def _refuse_static(request: Order) -> None:
    if request.static:
        raise ConfigError("--static rounds inputs by one scale; it goes with --scheme w8a8")


def _names(linears: list[TensorInfo]) -> frozenset[str]:
    return frozenset(info.name for info in linears)


def _usual_group(inputs: bool, linears: list[TensorInfo]) -> int:
    """The largest of the usual groups that divides the rows of all matrices."""
    if inputs:
        return -1
    columns = {info.shape[1] for info in linears}
    return next((g for g in (128, 64, 32) if all(k % g == 0 for k in columns)), 128)


def _folder_writer(form: FolderFormat) -> Write:
    def write(made: Checkpoint, out: Path, card: CardFacts) -> None:
        write_folder(made, form, out, card=card)

    return write
