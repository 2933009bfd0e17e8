"""Runs step plans: gathers inputs from rows, computes the model, samples.

``launch`` and ``sample`` are two calls so that masks (grammars) can be made while the device
computes, and so that the next plan can be launched before this one's samples are looked at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.decoder import Decoder
from ..schedule.plan import RowWork, StepPlan, StepResult
from .graphs import GraphPool, compute
from .kv_cache import KVCache
from .rows import Rows
from .sampler import Sampler
from .sampling import RowSampling
from .step import StepInputs


@dataclass(slots=True)
class Forward:
    """A launched step.

    Attributes:
        plan: what was computed.
        logits: float [S, V] of the rows that sample; all rows of a pure decode step.
        began: when, in seconds of ``time.perf_counter``.
    """

    plan: StepPlan
    logits: Tensor
    began: float


BAD_KEYS = "the model's keys or values of this text are not finite numbers"


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
        began = time.perf_counter()
        self.rows.apply(plan)
        return Forward(plan, self.compute(self.rows.gather(plan)), began)

    def compute(self, step: StepInputs) -> Tensor:
        """Logits [S, V] of a step; those of a recorded one are overwritten by the next."""
        decode = step.sample_index is None
        if self.graphs is not None and decode and self.graphs.covers(len(step.spans)):
            return self.graphs.run(step)
        return compute(self.model, step, self.kv)

    def sample(self, forward: Forward) -> StepResult:
        """Sampled tokens, also written to the rows for the next step, and rows that failed.

        A row fails alone: its logits, or the keys and values of its chunk, are not finite numbers,
        or drawing from it raised.
        """
        errors = {
            w.request_id: BAD_KEYS
            for w in forward.plan.work
            if not (w.count == 1 and w.needs_sample) and not self._finite_keys(w)
        }
        tokens: dict[str, int] = {}
        picked = [w for w in forward.plan.work if w.needs_sample]
        drawn = self.sampler(forward.logits, self._sampling(picked)) if picked else []
        for item, token in zip(picked, drawn, strict=True):
            if isinstance(token, str):
                errors[item.request_id] = token
            elif item.request_id not in errors:
                tokens[item.request_id] = token
        self.rows.write_samples(forward.plan, tokens)
        return StepResult(tokens, errors, time.perf_counter() - forward.began)

    def _finite_keys(self, item: RowWork) -> bool:
        """Whether the last layer's keys and values of a chunk are finite.

        A NaN in any layer is in the residual from there on, hence in all later ones. A token that
        decodes needs no look: its logits show it.
        """
        size = self.rows.block_size
        positions = torch.arange(item.start, item.start + item.count)
        blocks = self.rows.block_tables[item.row, positions // size].long()
        last, offsets = self.kv.layers[-1], positions % size
        where = (blocks.to(last.k.device), slice(None), offsets.to(last.k.device))
        # A sum is finite only if all its terms are; one that overflows float32 is as bad.
        total = last.k[where].sum(dtype=torch.float32) + last.v[where].sum(dtype=torch.float32)
        return math.isfinite(float(total))

    def _sampling(self, picked: list[RowWork]) -> list[RowSampling]:
        """What sampling needs of these rows."""
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
        return rows
