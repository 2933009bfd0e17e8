"""compressed-tensors: what llm-compressor writes.

Packed integers of 2 to 8 bits, 4-bit floats, W8A8 in int8, and FP8. The config has groups of
schemes with rules of which modules belong to each; transforms and other number systems are
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ...files.fields import Fields, shown
from ...files.safetensors_index import StoredTensor
from ...model.report import LoadReport
from .base import FolderTensors, Method, QuantizedModule, Read
from .checks import FLOAT_NAMES
from .ct_rules import Rules, classes_of, texts
from .ct_scheme import TensorScheme, WeightScheme, groups_of, preset, read_scheme
from .fp4 import COMPRESSED_TENSORS, find_pairs, load_pairs
from .packed import find_packed, load_packed
from .scaled import find_scaled, load_scaled
from .scales import with_kv_scales

if TYPE_CHECKING:
    from ....kernels.formats.canonical import Weight

# Label of the stored form -> how its weights are stored; None: in any way.
_LAYOUTS: dict[str, str | None] = {
    "": None,
    "dense": None,
    "fakequant": None,
    "mixed-precision": None,
    "pack-quantized": "packed",
    "nvfp4-pack-quantized": "in pairs",
    "mxfp4-pack-quantized": "in pairs",
    "int-quantized": "one number each",
    "float-quantized": "one number each",
    "naive-quantized": "one number each",
}
_STATES = ("initialized", "calibration", "frozen", "compressed", "decompressed")
_CONVERT = "quantize again without it, for example with llm-compressor's W4A16, W8A8 or FP8"
# Tensors beside a dense weight that say it was only rounded, not stored quantized.
_BESIDE = ("weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape")


class CompressedTensors(Method):
    """Reads folders quantized with compressed-tensors.

    Args:
        place: file and key of the config, for messages.
        config: the quantization config.
        report: gets decisions and warnings.

    Raises:
        CheckpointError: the config is damaged.
        UnsupportedModelError: sparsity, transforms, or a format that is not implemented.
    """

    name = "compressed-tensors"

    def __init__(self, place: str, config: Mapping[str, Any], report: LoadReport) -> None:
        super().__init__(place, report)
        fields = Fields(place, config)
        self._state = fields.text("quantization_status", "compressed").lower()
        if self._state not in _STATES:
            raise fields.error("quantization_status", self._state, " or ".join(_STATES))
        _refuse_transforms(fields)
        layout = fields.text("format", "")
        _check_layout(fields, "format", layout)
        if layout == "mixed-precision":
            layout = ""
        self._schemes: dict[str, TensorScheme] = {}
        targets: dict[str, str] = {}
        for name, group in groups_of(fields).items():
            part = Fields(place, group if isinstance(group, Mapping) else {}, f"{_at(name)}.")
            if isinstance(group, list):
                scheme = preset(name, fields, layout, report)
                rules = texts(f"{place}: {_at(name)}", group)
            else:
                scheme = read_scheme(name, part, layout, report)
                rules = texts(part.name("targets"), part.values.get("targets"))
            _check_layout(part, "format", scheme.layout)
            self._schemes[name] = scheme
            targets.update(dict.fromkeys(rules, name))
        self._targets = Rules(f"{place}: config_groups targets", targets)
        ignored = texts(f"{place}: ignore", config.get("ignore"))
        self._ignore = Rules(f"{place}: ignore", dict.fromkeys(ignored, ""))
        if fields.mapping("kv_cache_scheme"):
            report.decide(
                "kv_cache_scheme asks for a quantized KV cache; it stays in 16 or 32 bits, which "
                "is more accurate"
            )
        self._found: dict[str, tuple[TensorScheme, WeightScheme]] = {}
        self._floats: dict[str, list[str]] = {}

    def modules(self, tensors: FolderTensors) -> list[QuantizedModule]:
        """See :class:`~.base.Method`; dense weights that are meant to be rounded are refused."""
        found = super().modules(tensors)
        for group, modules in self._floats.items():
            self._report.warn(
                f"group {group} of the config covers {len(modules)} modules that are stored in "
                f"float, such as {modules[0]}; the tensors are followed"
            )
        return with_kv_scales(found, tensors.stored, self._report)

    def load(self, module: QuantizedModule, read: Read) -> Weight:
        """The weight [N, K] in memory of its own; raises CheckpointError for impossible values."""
        if module.module not in self._found:
            return read(module.parts["weight"]).clone()
        scheme, seen = self._found[module.module]
        if seen.fp4:
            return load_pairs(self._where, module, COMPRESSED_TENSORS, read)
        if "weight_packed" in module.parts:
            return load_packed(self._where, module, scheme, seen, read, self._report)
        return load_scaled(self._where, module, scheme, seen, read)

    def _module(
        self, module: str, shape: tuple[int, int], tensors: FolderTensors
    ) -> QuantizedModule | None:
        stored = tensors.stored
        weight, packed = stored.get(f"{module}.weight"), stored.get(f"{module}.weight_packed")
        if weight is not None and packed is not None:
            raise CheckpointError(
                f"{self._where}: {weight.name} and {packed.name} are both stored; expected one"
            )
        if packed is None and (weight is None or weight.dtype in FLOAT_NAMES):
            if weight is not None:
                self._check_dense(module, stored)
            return None
        scheme = self._scheme(module, packed or weight)
        how = "one number each" if packed is None else "packed"
        if packed is not None and packed.dtype == "U8":
            how = "in pairs"
        if _LAYOUTS[scheme.layout] not in (None, how):
            self._report.warn(
                f"{self._place}: group {scheme.name} is labelled {scheme.layout}, but its weights "
                f"are stored {how}; the tensors are followed"
            )
        if packed is not None:
            if how == "in pairs" or (scheme.weights is not None and scheme.weights.fp4):
                item, seen = self._pairs(module, shape, scheme, packed, stored)
            else:
                item, seen = find_packed(self._where, module, shape, scheme, tensors, self._report)
        else:
            item, seen = find_scaled(self._where, module, shape, scheme, stored, self._report)
        if scheme.inputs is not None and module.endswith("embed_tokens"):
            raise UnsupportedModelError(
                f"{self._place}: group {scheme.name} rounds the inputs of {module}, which are ids"
            )
        self._found[module] = scheme, seen
        return item

    def _pairs(
        self,
        module: str,
        shape: tuple[int, int],
        scheme: TensorScheme,
        packed: StoredTensor,
        stored: Mapping[str, StoredTensor],
    ) -> tuple[QuantizedModule, WeightScheme]:
        """A module of 4-bit floats, in pairs where integers have words, and its weights' scheme."""
        weights = scheme.weights
        if weights is None or not weights.fp4:
            raise CheckpointError(
                f"{self._where}: tensor {packed.name} is U8, as 4-bit floats are stored, but group "
                f"{scheme.name} of the config says {weights.label if weights else 'no'} weights",
                hint="the config and the weights belong to different models",
            )
        if scheme.inputs is not None:
            raise UnsupportedModelError(
                f"{self._place}: group {scheme.name} rounds inputs to {scheme.inputs.label} for "
                "weights of 4-bit floats; supported are inputs in 16 bits, 4-bit floats, and "
                "groups of 8-bit ones",
            )
        names = COMPRESSED_TENSORS
        item = find_pairs(self._where, module, shape, weights.group_size, names, stored)
        return item, weights

    def _scheme(self, module: str, tensor: StoredTensor | None) -> TensorScheme:
        """The scheme of a module that is stored quantized."""
        classes = classes_of(module)
        rule = self._ignore.rule_for(module, classes)
        group = self._targets.group_for(module, classes)
        if rule is None and group is not None:
            return self._schemes[group]
        name = tensor.name if tensor is not None else module
        why = "no group's targets match it" if rule is None else f"ignore has {shown(rule)}"
        raise CheckpointError(
            f"{self._place}: tensor {name} is quantized, but {why}; expected a group that says "
            "how it is quantized",
            hint="the config and the weights belong to different models",
        )

    def _check_dense(self, module: str, stored: Mapping[str, StoredTensor]) -> None:
        """A weight that is stored in float: refuse scales beside it, report rules that meant it."""
        beside = next((s for s in _BESIDE if f"{module}.{s}" in stored), None)
        if beside is not None:
            raise UnsupportedModelError(
                f"{self._where}: {module}.weight is stored in float beside its {beside} "
                f"(quantization_status {self._state}): rounding while running is not supported",
                hint="save the model compressed (llm-compressor: save_compressed=True)",
            )
        classes = classes_of(module)
        group = self._targets.group_for(module, classes)
        if group is None or self._schemes[group].weights is None:
            return
        if self._ignore.rule_for(module, classes) is not None:
            return
        if self._state == "compressed":
            self._floats.setdefault(group, []).append(module)
        else:
            self._report.decide(
                f"weights are stored in float (quantization_status {self._state}); they run as "
                "they are, and inputs are not rounded"
            )


def _at(group: str) -> str:
    return f"config_groups.{shown(group)[1:-1]}"


def _check_layout(fields: Fields, key: str, layout: str) -> None:
    """Refuse stored forms that are not implemented, by name."""
    if layout not in _LAYOUTS:
        raise UnsupportedModelError(
            f"{fields.name(key)} is {shown(layout)}; supported are "
            f"{', '.join(name for name in _LAYOUTS if name)}",
            hint=_CONVERT,
        )


def _refuse_transforms(fields: Fields) -> None:
    """Refuse what changes the numbers and is not implemented."""
    transform = fields.mapping("transform_config")
    if transform and transform.get("config_groups", transform):
        raise UnsupportedModelError(
            f"{fields.name('transform_config')} is set: rotations and other transforms of weights "
            "and inputs are not supported",
            hint=_CONVERT,
        )
    sparse = fields.mapping("sparsity_config")
    form = sparse.get("format", "dense") or "dense"
    if sparse and form != "dense":
        raise UnsupportedModelError(
            f"{fields.name('sparsity_config.format')} is {shown(form)}: sparse weights are not "
            "supported",
            hint=_CONVERT,
        )
