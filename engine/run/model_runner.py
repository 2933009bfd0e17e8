"""Runs step plans: gathers inputs from rows, computes the model, samples.

``launch`` and ``sample`` are two calls so that the step before can be committed while the device
computes this one (``overlap``).
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from halfbyte.errors import described

from ..models.decoder import Decoder
from ..request import Sampled
from ..schedule.plan import RowWork, StepPlan, StepResult
from .executors import Executor
from .kv_cache import KVCache
from .rows import Rows
from .sampler import Sampler
from .sampling import RowSampling
from .step import HiddenRows


@dataclass(slots=True)
class Forward:
    """A launched step.

    Attributes:
        plan: what was computed.
        logits: float [S, V] of the rows that sample; all rows of a pure decode step.
        hidden: hidden states that readers wait for, or None.
        began: when, in seconds of ``time.perf_counter``.
    """

    plan: StepPlan
    logits: Tensor
    began: float
    hidden: HiddenRows | None = None


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
        for init in plan.admitted:
            if init.copy is not None:
                self.kv.copy(*init.copy)
        self.rows.apply(plan)
        step = self.rows.gather(plan)
        return Forward(plan, self.executor.run(step), began, step.hidden)

    def sample(self, forward: Forward) -> StepResult:
        """Sampled tokens, also written to the rows for the next step, and rows that failed.

        A row fails alone: its logits, or the keys and values of its chunk, are not finite numbers,
        or drawing from it or reading it raised.
        """
        errors = self._let_read(forward)
        half = self.kv.last_tokens()[0].dtype == torch.float16
        errors |= {
            w.request_id: BAD_KEYS + TOO_LARGE * half
            for w in forward.plan.work
            if not (w.count == 1 and w.needs_sample) and not self._finite_keys(w)
        }
        picked = [w for w in forward.plan.work if self.rows.undecided(w)]
        logits = self._last_logits(forward, picked)
        drawn = self.sampler(logits, [self._sampling(w) for w in picked]) if picked else []
        tokens: dict[str, tuple[Sampled, ...]] = {
            w.request_id: () for w in forward.plan.work if w.needs_sample
        }
        for item, sampled in zip(picked, drawn, strict=True):
            if isinstance(sampled, str):
                errors.setdefault(item.request_id, sampled)
            elif item.request_id not in errors:
                tokens[item.request_id] = sampled
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

    def _last_logits(self, forward: Forward, picked: list[RowWork]) -> Tensor:
        """Logits [len(picked), V] of the last tokens of these rows."""
        if len(picked) == forward.logits.shape[0]:
            return forward.logits
        ends = self._ends(forward)
        return forward.logits[[ends[w.request_id] - 1 for w in picked]]

    def _ends(self, forward: Forward) -> dict[str, int]:
        """Where the logits of each request's row end."""
        rows = [self.rows.logit_rows(w) for w in forward.plan.work]
        names = [w.request_id for w in forward.plan.work]
        return dict(zip(names, itertools.accumulate(rows), strict=True))

    def _let_read(self, forward: Forward) -> dict[str, str]:
        """Show the readers what was computed of their prompts; why some could not read it."""
        errors: dict[str, str] = {}
        work = [w for w in forward.plan.work if w.reads]
        if not work:
            return errors
        ends, seen = self._ends(forward), 0
        for item in work:
            reader = self.rows.reader(item)
            if reader.hidden:
                assert forward.hidden is not None and forward.hidden.rows is not None
                rows = forward.hidden.rows[seen : seen + item.count]
                seen += item.count
            else:
                end = ends[item.request_id]
                rows = forward.logits[end - item.count : end]
            try:
                reader.read(item.start, rows)
            except Exception as error:
                errors[item.request_id] = described(error)
        return errors

    def _sampling(self, item: RowWork) -> RowSampling:
        """What sampling needs of a row."""
        request, position = self.rows.request(item), item.start + item.count
        params, prompt = request.params, len(request.prompt)
        room = self.rows.max_context - position
        if params.max_tokens is not None:
            room = min(room, params.max_tokens - (position - prompt))
        return RowSampling(
            params,
            params.seed or 0,
            position,
            self.rows.tokens[item.row, :position],
            prompt,
            request.draw,
            room,
        )
