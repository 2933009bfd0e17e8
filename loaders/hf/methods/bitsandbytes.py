"""bitsandbytes: NF4 and FP4 with or without double quantization, int8, and quantizing at load.

A folder of plain 16-bit weights may carry a bitsandbytes config: it asks whoever loads it to
quantize. Modules without a quantized state in a folder that has some stay dense.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ....kernels.formats.code_tables import FP4, NF4
from ....kernels.formats.weight_format import WeightFormat
from ...files.fields import Fields, shown
from ...files.safetensors_index import StoredTensor
from ...model.quantizing import DENSE_FORMATS, is_decoder_linear
from ...model.report import LoadReport
from .base import FolderTensors, Method, QuantizedModule, Read
from .bnb_state import STORAGE, TABLE_NAMES, State4, load_4bit, read_state
from .checks import expect, finite, missing

if TYPE_CHECKING:
    from ....kernels.formats.canonical import Weight

_FORMATS = {1: "col32", 2: "col_turing", 3: "col_ampere"}
_PLAIN_NAME = re.compile(r"[\w.-]+")
_INT8 = "bitsandbytes int8"
_ROWS = WeightFormat(8, -1)
_BLOCK = 64  # of weights quantized at load, the tool's default


class BitsAndBytes(Method):
    """One folder quantized by bitsandbytes, or to be quantized the way its config asks for.

    Args:
        place: file and key of the config, for messages.
        config: what stands there.
        report: gets the decisions.

    Raises:
        CheckpointError: a value of the config is of the wrong type, or 4 and 8 bits are both
            asked for.
    """

    name = "bitsandbytes"

    def __init__(self, place: str, config: Mapping[str, Any], report: LoadReport) -> None:
        fields = Fields(place, config, "quantization_config.")
        super().__init__(place, report)
        self._config = config
        self._four = bool(fields.flag("load_in_4bit", None) or fields.flag("_load_in_4bit", False))
        eight = fields.flag("load_in_8bit", None) or fields.flag("_load_in_8bit", False)
        self._eight = bool(eight)
        self._kind = fields.text("bnb_4bit_quant_type", "fp4")
        self._double = fields.flag("bnb_4bit_use_double_quant", False)
        self._storage = fields.text("bnb_4bit_quant_storage", "uint8")
        self._skip = self._skipped(config.get("llm_int8_skip_modules"), fields)
        if self._four and self._eight:
            raise CheckpointError(f"{place}: load_in_4bit and load_in_8bit are both true")
        self._states: dict[str, State4] = {}
        self._at_load: set[str] = set()
        self._parts: dict[str, dict[str, StoredTensor]] = {}

    @staticmethod
    def _skipped(value: object, fields: Fields) -> list[str]:
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise fields.error("llm_int8_skip_modules", value, "a list of module names")
        return value

    def modules(self, tensors: FolderTensors) -> list[QuantizedModule]:
        """See :class:`~.base.Method`; a layout of int8 that was given up years ago is refused.

        So is a plain folder whose config asks for a kind of quantization that is not known here.
        """
        self._parts = _parts(tensors.stored)
        found = super().modules(tensors)
        if found:
            self._compare(found)
            return found
        return self._quantize_at_load(tensors)

    def _module(
        self, module: str, shape: tuple[int, int], tensors: FolderTensors
    ) -> QuantizedModule | None:
        name, stored = f"{module}.weight", tensors.stored
        own = self._parts.get(module, {})
        if name not in stored and not own:
            return None
        if own.keys() & {"SCB", "weight_format"} or _is(stored, name, "I8"):
            return self._int8(module, stored, own, shape, tensors.read)
        if own or not _is(stored, name, *DENSE_FORMATS, "F64"):
            whole = own | ({"weight": stored[name]} if name in stored else {})
            return self._four_bits(module, whole, shape, tensors.read)
        return None

    def load(self, module: QuantizedModule, read: Read) -> Weight:
        """The matrix [N, K]: codes, or dense where 4-bit blocks cross rows.

        Raises CheckpointError for scales or tables that are not finite.
        """
        if module.module in self._at_load:
            return self._quantize(module, read)
        state = self._states.get(module.module)
        if state is not None:
            return load_4bit(self._where, module, state, read)
        return self._load_int8(module, read)

    def _four_bits(
        self, module: str, parts: dict[str, StoredTensor], shape: tuple[int, int], read: Read
    ) -> QuantizedModule:
        state = read_state(self._where, module, parts, shape, read)
        self._states[module] = state
        label = state.label
        if state.dense:
            label += f", as {state.dtype}"
            self._report.decide(
                f"rows of {shape[1]} weights are cut by blocks of {state.blocksize}: such "
                f"matrices ({module} is the first) are kept dense in {state.dtype}"
            )
        elif state.group != state.blocksize:
            self._report.decide(
                f"rows of {shape[1]} weights with blocks of {state.blocksize}: read as groups of "
                f"{state.group} ({module} is the first)"
            )
        form = None
        if not state.dense:
            table = read(parts["weight.quant_map"]).tolist()
            form = replace(state.form, table=tuple(table))
        told = {"dtype": state.held_as, "half": state.half, "compact": state.compact}
        return QuantizedModule(module, shape, label, parts, form, **told)

    def _int8(
        self,
        module: str,
        stored: Mapping[str, StoredTensor],
        own: dict[str, StoredTensor],
        shape: tuple[int, int],
        read: Read,
    ) -> QuantizedModule:
        codes, scales = stored.get(f"{module}.weight"), own.get("SCB")
        if codes is None or scales is None:
            raise missing(self._where, module, ["SCB" if codes else "weight"], f"{_INT8} needs it")
        expect(self._where, codes, ("I8",), shape)
        expect(self._where, scales, ("F32",), shape[:1])
        layout = own.get("weight_format")
        if layout is None:
            self._report.decide("int8 weights without weight_format are rows of the matrix")
        else:
            expect(self._where, layout, ("U8",), (), (1,))
            value = int(read(layout).reshape(-1)[0])
            if value != 0:
                raise UnsupportedModelError(
                    f"{self._where}: tensor {layout.name} is {value} "
                    f"({_FORMATS.get(value, 'unknown')}); supported is 0 (row)",
                    hint="load and save the model with a current bitsandbytes, which keeps rows",
                )
        parts = {"weight": codes, **own}
        return QuantizedModule(module, shape, _INT8, parts, _ROWS, dtype="F32", half=False)

    def _load_int8(self, module: QuantizedModule, read: Read) -> Weight:
        """``w = SCB[n] / 127 * code``, one group for each row."""
        import torch

        from ....kernels.formats.canonical import QuantizedLinear

        stored = module.parts["SCB"]
        scales = finite(self._where, stored.name, read(stored)).unsqueeze(1) / 127
        codes = read(module.parts["weight"]).view(torch.uint8) ^ 128
        name = f"{module.module}.weight"
        return QuantizedLinear(name, _ROWS, codes, scales, None, module.shape[1])

    def _compare(self, found: list[QuantizedModule]) -> None:
        """Check what the config says against the tensors, and say what is done with int8."""
        eight = any(m.label == _INT8 for m in found)
        four = [self._states[m.module] for m in found if m.module in self._states]
        for key, said, there in (
            ("load_in_4bit", self._four, bool(four)),
            ("load_in_8bit", self._eight, eight),
        ):
            if said != there:
                self._warn(key, said, there)
        if (
            four
            and {s.kind for s in four} != {self._kind}
            and "bnb_4bit_quant_type" in self._config
        ):
            self._warn("bnb_4bit_quant_type", self._kind, four[0].kind)
        if four and {s.nested_blocksize > 0 for s in four} != {self._double}:
            self._warn("bnb_4bit_use_double_quant", self._double, not self._double)
        stored = {STORAGE[m.parts["weight"].dtype] for m in found if m.module in self._states}
        if stored - {self._storage}:
            self._warn("bnb_4bit_quant_storage", self._storage, min(stored - {self._storage}))
        if eight:
            threshold = Fields(self._place, self._config).number(
                "llm_int8_threshold", 0, 1e9, default=6.0
            )
            self._report.decide(
                "LLM.int8(): weights in 8 bits, all inputs in full precision. The tool would "
                f"round inputs to 8 bits but for outlier columns (beyond {threshold:g}); here no "
                "column is rounded"
            )

    def _warn(self, key: str, said: object, found: object) -> None:
        self._report.warn(
            f"{key} is {shown(said)} in {self._place}, but the tensors are {shown(found)}; the "
            "tensors are followed"
        )

    def _quantize_at_load(self, tensors: FolderTensors) -> list[QuantizedModule]:
        """Modules to quantize, for a folder whose weights are all dense."""
        if not (self._four or self._eight):
            self._report.decide("the bitsandbytes config asks for nothing: weights stay dense")
            return []
        if self._four and self._kind not in TABLE_NAMES:
            raise UnsupportedModelError(
                f"{self._place}: bnb_4bit_quant_type is {shown(self._kind)}; known are "
                f"{', '.join(TABLE_NAMES)}",
                hint="remove quantization_config from config.json and use --quantize",
            )
        odd = next((name for name in self._skip if not _PLAIN_NAME.fullmatch(name)), None)
        if odd is not None:
            raise UnsupportedModelError(
                f"{self._place}: llm_int8_skip_modules has {shown(odd)}; expected plain names "
                "when weights are to be quantized at load",
                hint="name the modules, or quantize the checkpoint with bitsandbytes first",
            )
        label = f"bitsandbytes {self._kind.upper() if self._four else 'int8'} at load"
        form = _ROWS
        if self._four:
            form = WeightFormat(4, _BLOCK, "table", NF4 if self._kind == "nf4" else FP4)
        found = []
        for module, shape in tensors.matrices():
            name = f"{module}.weight"
            stored = tensors.stored.get(name)
            if stored is None or stored.dtype not in DENSE_FORMATS or self._skips(module):
                continue
            if is_decoder_linear(name, shape):
                expect(self._where, stored, DENSE_FORMATS, shape)
                half = self._four and stored.dtype != "F32"
                parts = {"weight": stored}
                found.append(
                    QuantizedModule(module, shape, label, parts, form, dtype="F32", half=half)
                )
        self._at_load = {module.module for module in found}
        how = f"in blocks of {_BLOCK}, scales in float32" if self._four else "a scale for each row"
        self._report.decide(
            f"the weights are not quantized, but the config asks for bitsandbytes: {len(found)} "
            f"linear layers are rounded to {self._kind.upper() if self._four else 'int8'} at load "
            f"({how}); embeddings and LM head as stored"
        )
        return found

    def _skips(self, module: str) -> bool:
        """Whether the config keeps a module dense: by its beginning or its end."""
        return any(
            module == name or module.startswith(f"{name}.") or module.endswith(name)
            for name in self._skip
        )

    def _quantize(self, module: QuantizedModule, read: Read) -> Weight:
        from ...model.rtn import rtn_symmetric, rtn_table

        stored, form = module.parts["weight"], module.format
        assert form is not None
        if not self._four:
            return rtn_symmetric(stored.name, read(stored), 8, -1)
        return rtn_table(stored.name, read(stored), _BLOCK, form.table)


def _parts(stored: Mapping[str, StoredTensor]) -> dict[str, dict[str, StoredTensor]]:
    """Module -> suffix -> what bitsandbytes writes beside a weight."""
    found: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        module, inner, suffix = name.partition(".weight.")
        if not inner:
            module, _, suffix = name.rpartition(".")
            if suffix not in ("SCB", "weight_format"):
                continue
        found.setdefault(module, {})[f"weight.{suffix}" if inner else suffix] = tensor
    return found


def _is(stored: Mapping[str, StoredTensor], name: str, *dtypes: str) -> bool:
    return name in stored and stored[name].dtype in dtypes
