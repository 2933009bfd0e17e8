"""What an engine would hold, before a weight is read: the plan that a server shows and checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...loaders import open_checkpoint
from ...loaders.model.quantizing import QuantizingCheckpoint
from ...loaders.store.model_store import resolve_model
from ..backends import make_backend
from ..backends.activations import check_activations, chosen_rule
from ..config import make_config
from ..run.memory import KV_SHARE, MemoryPlan, free_memory, plan_memory
from .capacity import PLANNED_KV, measure


@dataclass(frozen=True, slots=True)
class StartPlan:
    """An engine by arithmetic.

    Attributes:
        name: the model's own.
        architecture: such as ``llama``.
        file_format: ``gguf`` or ``safetensors``.
        formats: format of tensors -> their bytes in the files, the most first.
        file_bytes: of all files.
        backend: what computes.
        detail: how, in words.
        weights: bytes, as the C kernels or the Triton kernels pack them.
        workspace: bytes of activations, logits and the kernels' own.
        memory: KV cache and context.
        batch: most requests running at once.
        step_tokens: most tokens of a step.
    """

    name: str
    architecture: str
    file_format: str
    formats: dict[str, int]
    file_bytes: int
    backend: str
    detail: str
    weights: int
    workspace: int
    memory: MemoryPlan
    batch: int
    step_tokens: int

    @property
    def least(self) -> int:
        """Bytes that are in use as soon as it runs."""
        return self.weights + self.workspace

    @property
    def most(self) -> int:
        """Bytes that are in use when the KV cache is full."""
        return self.least + self.memory.kv_bytes


def plan_start(
    model: str | Path, options: dict[str, Any], *, models: int = 1, room: int = 0
) -> StartPlan:
    """The plan for a model, from its headers.

    Args:
        model: local path, registered name or pulled repository.
        options: fields of EngineConfig.
        models: how many share the memory: a KV cache that is sized by it gets its part.
        room: bytes of it; 0 is what is free.

    Raises:
        HalfbyteError: an engine made so would not start.
    """
    config = make_config(options)
    path = resolve_model(model)
    checkpoint = open_checkpoint(path)
    try:
        if config.quantize is not None:
            checkpoint = QuantizingCheckpoint(checkpoint, config.quantize)
        check_activations(config.activations, checkpoint)
        backend = make_backend(config)
        free = room or free_memory(backend.device)
        memory = plan_memory(
            checkpoint.config, config, backend.kv_dtype, free, share=KV_SHARE / models
        )
        target = "cpu" if backend.name.startswith("cpu") else "triton"
        rule = chosen_rule(config) or "float"
        need = measure(checkpoint, PLANNED_KV[target][0], target, rule=rule)
        report = checkpoint.report()
        sizes = sorted(report.formats.items(), key=lambda item: -item[1][1])
        return StartPlan(
            checkpoint.config.name or path.stem,
            checkpoint.config.architecture,
            report.kind,
            {label: nbytes for label, (_, nbytes) in sizes},
            sum(report.files.values()),
            backend.name,
            backend.detail,
            need.weights,
            need.fixed + config.max_batch * need.row,
            memory,
            config.max_batch,
            config.max_batch_tokens,
        )
    finally:
        checkpoint.close()
