"""Runs step plans: gathers inputs from rows, computes the model, samples.

``launch``, ``draw`` and what that gives are three calls, so that the step before can be read and
committed while the device computes this one (``overlap``).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from halfbyte.errors import described

from ..models.decoder import Decoder
from ..request import Sampled
from ..schedule.plan import RowWork, StepPlan, StepResult
from .executors import Executor
from .kv_cache import KVCache
from .read_back import ReadBack
from .rows import Rows
from .sampler import BROKEN, Sampler
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
        # The token that was drawn last in each row, where the next step reads it.
        self._drawn = torch.zeros(
            len(rows.requests), dtype=torch.int64, device=sampler.drawer.device
        )
        self._read = 0.0

    def launch(self, plan: StepPlan) -> Forward:
        """Compute a plan's tokens and fill their KV."""
        began = time.perf_counter()
        for init in plan.admitted:
            if init.copy is not None:
                self.kv.copy(*init.copy)
            if init.restore >= 0:
                self.kv.copy_state(init.restore, init.row)
        self.rows.apply(plan)
        step = self.rows.gather(plan)
        if bool((step.token_ids < 0).any()):
            step.drawn = self._drawn
        logits = self.executor.run(step)
        for item in plan.work:
            if item.save >= 0:
                self.kv.copy_state(item.row, item.save)
        return Forward(plan, logits, began, step.hidden)

    def draw(self, forward: Forward, late: bool = False) -> Callable[[], StepResult]:
        """Begin to draw the rows' next tokens; the result is what comes out when it is asked for.

        The next step can be launched before that: where ``late`` is asked for and the host has no
        say in any row, tokens stay on the device.

        A row fails alone: its logits, or the keys and values of its chunk, are not finite numbers,
        or drawing from it or reading it raised.
        """
        work = forward.plan.work
        errors = self._let_read(forward)
        chunks = [w for w in work if not (w.count == 1 and w.needs_sample)]
        sums = [torch.stack([self._key_sum(w) for w in chunks])] if chunks else []
        picked = [w for w in work if self.rows.undecided(w)]
        logits = self._last_logits(forward, picked)
        asked = [self._sampling(w) for w in picked]
        begun = None
        if late and picked and self.sampler.drawer.reads_late:
            begun = self.sampler.begin(logits, asked)
        if begun is None:
            drawn = self.sampler(logits, asked) if picked else []
            result = self._result(forward, picked, drawn, errors, chunks, sums)
            self.rows.write_samples(forward.plan, result.tokens)
            return lambda: result
        # On the device alone, for the next step.
        self._drawn[torch.tensor([w.row for w in picked]).to(begun.device)] = begun
        promise, back = self.rows.promise(picked), ReadBack([begun, *sums])

        def read() -> StepResult:
            first, *rest = back.wait()
            tokens = first.tolist()
            self.rows.keep(promise, tokens)
            made = [(Sampled(token),) if token >= 0 else BROKEN for token in tokens]
            return self._result(forward, picked, made, errors, chunks, rest)

        return read

    def _result(
        self,
        forward: Forward,
        picked: list[RowWork],
        drawn: Sequence[tuple[Sampled, ...] | str],
        errors: dict[str, str],
        chunks: list[RowWork],
        sums: list[Tensor],
    ) -> StepResult:
        """Sampled tokens, and rows that failed."""
        half = self.kv.last_tokens()[0].dtype == torch.float16
        finite = sums[0].isfinite().tolist() if sums else []
        bad = [w for w, good in zip(chunks, finite, strict=True) if not good]
        errors = errors | {w.request_id: BAD_KEYS + TOO_LARGE * half for w in bad}
        tokens: dict[str, tuple[Sampled, ...]] = {
            w.request_id: () for w in forward.plan.work if w.needs_sample
        }
        for item, sampled in zip(picked, drawn, strict=True):
            if isinstance(sampled, str):
                errors.setdefault(item.request_id, sampled)
            elif item.request_id not in errors:
                tokens[item.request_id] = sampled
        # A step that was launched while the one before ran began when that was over.
        now = time.perf_counter()
        seconds, self._read = now - max(forward.began, self._read), now
        return StepResult(tokens, errors, seconds)

    def _key_sum(self, item: RowWork) -> Tensor:
        """The sum of the last layer's keys and values of a chunk, float32 [].

        A NaN in any layer is in the residual from there on, hence in all later ones. A token that
        decodes needs no look: its logits show it. A sum is finite only if all its terms are; one
        that overflows float32 is as bad.
        """
        size = self.rows.block_size
        positions = torch.arange(item.start, item.start + item.count)
        blocks = self.rows.block_tables[item.row, positions // size].long()
        offsets = positions % size
        last = self.kv.last_tokens()
        where = (blocks.to(last[0].device), slice(None), offsets.to(last[0].device))
        return torch.stack([kept[where].sum(dtype=torch.float32) for kept in last]).sum()

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
