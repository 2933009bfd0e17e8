"""Runs step plans: gathers inputs from rows, computes the model, samples.

``launch`` and ``sample`` are two calls so that masks (grammars) can be made while the device
computes, and so that the next plan can be launched before this one's samples are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .graphs import GraphPool, compute
from .kv_cache import KVCache
from .models.decoder import Decoder
from .plan import StepPlan
from .rows import Rows
from .sampler import Sampler
from .sampling import RowSampling
from .step import StepInputs


@dataclass(slots=True)
class Forward:
    """A launched step: its plan and float32 logits [S, V] of the rows that sample."""

    plan: StepPlan
    logits: Tensor


class ModelRunner:
    """Computes steps on one device.

    Args:
        model: the network.
        kv: its cache.
        rows: per-request buffers.
        sampler: draws tokens.
        graphs: recorded decode steps, or None to compute each step anew.
    """

    def __init__(
        self,
        model: Decoder,
        kv: KVCache,
        rows: Rows,
        sampler: Sampler,
        graphs: GraphPool | None = None,
    ) -> None:
        self.model = model
        self.kv = kv
        self.rows = rows
        self.sampler = sampler
        self.graphs = graphs

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Torch's own threads held to one while a backend with a pool of its own is at work.

        Torch's workers go on spinning after an op, on the cores that the pool needs next.
        """
        before = torch.get_num_threads()
        if not self.model.ops.records or before == 1:
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def launch(self, plan: StepPlan) -> Forward:
        """Compute a plan's tokens and fill their KV."""
        self.rows.apply(plan)
        return Forward(plan, self.compute(self.rows.gather(plan)))

    def compute(self, step: StepInputs) -> Tensor:
        """Logits [S, V] of a step; those of a recorded one are overwritten by the next."""
        decode = step.sample_index is None
        if self.graphs is not None and decode and self.graphs.covers(len(step.spans)):
            return self.graphs.run(step)
        return compute(self.model, step, self.kv)

    def sample(self, forward: Forward) -> dict[str, int]:
        """Request id -> sampled token, also written to the rows for the next step."""
        picked = [w for w in forward.plan.work if w.needs_sample]
        if not picked:
            return {}
        rows: list[RowSampling] = []
        for item in picked:
            params = self.rows.params[item.row]
            assert params is not None
            position = item.start + item.count
            rows.append(
                RowSampling(
                    params,
                    params.seed or 0,
                    position,
                    self.rows.tokens[item.row, :position],
                    int(self.rows.prompt_lengths[item.row]),
                )
            )
        tokens = self.sampler(forward.logits, rows)
        sampled = {w.request_id: t for w, t in zip(picked, tokens, strict=True)}
        self.rows.write_samples(forward.plan, sampled)
        return sampled
