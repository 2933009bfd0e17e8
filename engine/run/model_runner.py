"""Runs step plans: gathers inputs from rows, computes the model, samples.

``launch`` and ``sample`` are two calls so that the step before can be committed while the device
computes this one (``overlap``).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.decoder import Decoder
from ..schedule.plan import RowWork, StepPlan, StepResult
from .executors import Executor
from .kv_cache import KVCache
from .rows import Rows
from .sampler import Sampler
from .sampling import RowSampling


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
TOO_LARGE = "; float16 ends at 65504, kv_dtype='bfloat16' holds larger ones"


class ModelRunner:
    """Computes steps on one device.

    Args:
        model: the network.
        kv: its cache.
        rows: per-request buffers.
        sampler: draws tokens.
        executor: runs steps of the network on the cache.
    """

    def __init__(
        self, model: Decoder, kv: KVCache, rows: Rows, sampler: Sampler, executor: Executor
    ) -> None:
        self.model = model
        self.kv = kv
        self.rows = rows
        self.sampler = sampler
        self.executor = executor

    def launch(self, plan: StepPlan) -> Forward:
        """Compute a plan's tokens and fill their KV."""
        began = time.perf_counter()
        self.rows.apply(plan)
        return Forward(plan, self.executor.run(self.rows.gather(plan)), began)

    def sample(self, forward: Forward) -> StepResult:
        """Sampled tokens, also written to the rows for the next step, and rows that failed.

        A row fails alone: its logits, or the keys and values of its chunk, are not finite numbers,
        or drawing from it raised.
        """
        half = self.kv.last_tokens()[0].dtype == torch.float16
        errors = {
            w.request_id: BAD_KEYS + TOO_LARGE * half
            for w in forward.plan.work
            if not (w.count == 1 and w.needs_sample) and not self._finite_keys(w)
        }
        tokens: dict[str, int] = {}
        picked = [w for w in forward.plan.work if w.needs_sample]
        drawn = self.sampler(forward.logits, self._sampling(picked)) if picked else []
        for item, token in zip(picked, drawn, strict=True):
            if isinstance(token, str):
                errors.setdefault(item.request_id, token)
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
        offsets = positions % size
        last = self.kv.last_tokens()
        where = (blocks.to(last[0].device), slice(None), offsets.to(last[0].device))
        # A sum is finite only if all its terms are; one that overflows float32 is as bad.
        return math.isfinite(float(sum(kept[where].sum(dtype=torch.float32) for kept in last)))

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
