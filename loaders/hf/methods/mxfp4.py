"""``mxfp4``: MXFP4 as transformers stores it, with blocks and scales beside each other.

``P_blocks`` [N, K / 32, 16] has the pairs of codes of a matrix, ``P_scales`` [N, K / 32] an
exponent for each group. Experts of one layer are stacked: ``experts.P_blocks`` [E, N, K / 32, 16]
has those of the matrices ``experts.0.P`` to ``experts.(E - 1).P``, and
``experts.gate_up_proj_blocks`` [E, 2 N, K / 32, 16] those of gates and ups, whose rows alternate
(gpt-oss).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...files.fields import Fields
from ...model.expert_stacks import ExpertRows, expert_rows
from ...model.report import LoadReport
from .base import ExpertCounts, FolderTensors, Method, QuantizedModule, Read
from .checks import check_dtype, check_shape, missing
from .ct_rules import texts
from .fp4 import check_groups, exponents, pairs_module, pairs_weight

if TYPE_CHECKING:
    from ....kernels.formats.canonical import Weight

_GROUP = 32


class Mxfp4(Method):
    """Reads folders whose config says ``mxfp4``; which matrices it covers is in the tensors.

    Args:
        place: file and key of the config, for messages.
        config: the quantization config.
        report: gets decisions and warnings.
    """

    name = "mxfp4"

    def __init__(self, place: str, config: Mapping[str, Any], report: LoadReport) -> None:
        super().__init__(place, report)
        fields = Fields(place, config)
        texts(fields.name("modules_to_not_convert"), config.get("modules_to_not_convert"))
        self._expert: dict[str, ExpertRows] = {}
        self._experts = ExpertCounts()

    def _module(
        self, module: str, shape: tuple[int, int], tensors: FolderTensors
    ) -> QuantizedModule | None:
        stored, (n, k) = tensors.stored, shape
        expert = expert_rows(f"{module}.weight")
        stem, stack = module, ()
        if f"{module}_blocks" not in stored and expert is not None:
            prefix, _, name = module.rpartition(f".{expert.expert}.")
            alone = ExpertRows(f"{prefix}.{name}", expert.expert, 0, 1, "weight")
            expert = alone if f"{alone.stack}_blocks" in stored else expert
            stem, n = expert.stack, n * expert.step
            stack = (self._experts(prefix, name, tensors),)
            self._expert[module] = expert
        if f"{stem}_blocks" not in stored:
            return None
        blocks, scales = stored[f"{stem}_blocks"], stored.get(f"{stem}_scales")
        if scales is None:
            raise missing(self._where, module, ["scales"], f"{blocks.name} is stored")
        check_groups(self._where, blocks, k, _GROUP)
        groups = k // _GROUP
        why = f"{'experts by ' if stack else ''}{groups} groups of {_GROUP} of {[n, k]}"
        for tensor, ends in ((blocks, (_GROUP // 2,)), (scales, ())):
            check_dtype(self._where, tensor, ("U8",))
            check_shape(self._where, tensor, (*stack, n, groups, *ends), why)
        parts = {"blocks": blocks, "scales": scales}
        shared = stack[0] * (n // shape[0]) if stack else 1
        return replace(pairs_module(module, shape, _GROUP, parts), shared=shared)

    def load(self, module: QuantizedModule, read: Read) -> Weight:
        """The weight [N, K]; raises CheckpointError for exponents that are no numbers."""
        blocks, scales = (read(module.parts[key]) for key in ("blocks", "scales"))
        name = module.parts["scales"].name
        expert = self._expert.get(module.module)
        if expert is not None:
            blocks, scales = (expert.of_rows(x).contiguous() for x in (blocks, scales))
            rows = f", {expert.first}::{expert.step}" if expert.step > 1 else ""
            name = f"{name}[{expert.expert}{rows}]"
        compact = exponents(self._where, name, scales)
        return pairs_weight(self._where, name, module, blocks.flatten(1), compact)
