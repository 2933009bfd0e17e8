"""Sampling: from logits to the next token of each row, the same for a row in any batch.

Order: what may not be drawn is masked, then processors, temperature, filters and the draw
(``sampling.py``), Gumbel-max with noise from a counter keyed by (seed, position, token id). See
``kernels/reference.py``.

A row that cannot be drawn from is its own affair: its place in the result says why, and the other
rows get the tokens that they would have got without it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from halfbyte.errors import GrammarError, HalfbyteError, described

from ..backends.base import Drawer
from ..request import RequestFault, Sampled
from .logprobs import logprobs, rated
from .masks import Mask, make_mask
from .processors import processed
from .sampling import RowSampling, sample_row, shaped_row

log = logging.getLogger(__name__)

BROKEN = "the model's logits are not finite numbers: nothing can be drawn from them"
"""Why a row has no token: NaN, or nothing above -inf, or an infinite largest logit."""

NOTHING_LEFT = RequestFault(
    "no token may be drawn here: the grammar, allowed_token_ids, bad_words, processors and the "
    "model's own suppressed tokens leave none"
)
"""Why a row has no token although its logits are good."""

_Drawn = tuple[int, Tensor | None]
"""A token, and the log-probabilities [V] that it had where the host knows them.

Without a token, -1, what the processors left of the logits.
"""


class Sampler:
    """Draws tokens.

    Args:
        valid: ids from 0 to ``valid - 1`` exist in the tokenizer; padding rows of the
            embedding beyond them are never drawn.
        drawer: the backend's choice.
        suppressed: ids that are never drawn although they exist.
        end_tokens: ids that end a text; rows below their ``min_tokens`` do not draw them.
    """

    def __init__(
        self,
        valid: int,
        drawer: Drawer,
        suppressed: Iterable[int] = (),
        end_tokens: Iterable[int] = (),
    ) -> None:
        self.valid = valid
        self.drawer = drawer
        ids = sorted(i for i in suppressed if i < valid)
        self._suppressed = torch.tensor(ids, device=drawer.device) if ids else None
        self._end_tokens = frozenset(end_tokens)

    def __call__(
        self, logits_SV: Tensor, rows: Sequence[RowSampling]
    ) -> list[tuple[Sampled, ...] | str]:
        """The next token of each row of logits [S, V], or why it has none.

        Tokens that a grammar forces follow it. The logits are changed. Raises what the backend
        raises when it fails for every row.
        """
        raw = {
            i: logprobs(logits_SV[i])
            for i, row in enumerate(rows)
            if row.draw.rated and row.params.logprobs_mode == "raw"
        }
        logits = self._drawable(logits_SV)
        errors: dict[int, str] = {}
        masks: dict[int, Mask] = {}
        for i, row in enumerate(rows):
            try:
                mask = make_mask(row, self.valid, self._end_tokens)
            except GrammarError as error:
                errors[i] = RequestFault(error.message)
                continue
            if mask is not None:
                masks[i] = mask
                mask.apply(logits[i])
        drawn = self._isolated(logits, rows)
        for i, mask in masks.items():
            if _empty(drawn[i]) and mask.release(logits[i]):
                # Nothing is left but what would end the text: so it ends.
                (drawn[i],) = self._isolated(logits[i : i + 1], rows[i : i + 1])
        out: list[tuple[Sampled, ...] | str] = []
        for i, (row, item) in enumerate(zip(rows, drawn, strict=True)):
            if i in errors:
                out.append(errors[i])
            elif isinstance(item, str):
                out.append(item)
            elif item[0] == -1:
                # What masks left, or of a shaped row: its processors.
                left = logits[i] if item[1] is None else item[1]
                emptied = (i in masks or item[1] is not None) and bool((left == -torch.inf).all())
                out.append(NOTHING_LEFT if emptied else BROKEN)
            else:
                out.append(_with_forced(row, rated(item[0], raw.get(i, item[1]), row)))
        return out

    def begin(self, logits_SV: Tensor, rows: Sequence[RowSampling]) -> Tensor | None:
        """The next token of each row of logits [S, V], int64 [S] on their device; -1: it has none.

        None, with nothing changed, where the host must know a token before the next is drawn, or
        masks, or more than the token itself.
        """
        for row in rows:
            draw = row.draw
            host = row.shaped or row.biased or draw.rated or draw.grammar is not None
            if host or make_mask(row, self.valid, self._end_tokens) is not None:
                return None
        logits = self._drawable(logits_SV)
        if all(r.params.greedy and not r.penalized for r in rows):
            return self.drawer.argmax(logits)
        return self.drawer.sample(logits, rows)

    def _drawable(self, logits_SV: Tensor) -> Tensor:
        """Logits of ids that exist, with those of suppressed ones at -inf, in place."""
        logits = logits_SV[:, : self.valid]
        if self._suppressed is not None:
            logits.index_fill_(1, self._suppressed, -torch.inf)  # a view: no copy of the rest
        return logits

    def _isolated(self, logits: Tensor, rows: Sequence[RowSampling]) -> list[_Drawn | str]:
        """:meth:`_draw`; when it raises, each row alone, so that one cannot fail the others."""
        try:
            return [*self._draw(logits, rows)]
        except Exception as error:
            log.warning("a draw failed, rows are drawn one by one: %s", described(error))
        drawn: list[_Drawn | str] = []
        for i, row in enumerate(rows):
            try:
                drawn += self._draw(logits[i : i + 1], [row])
            except Exception as error:
                told = error.message if isinstance(error, HalfbyteError) else described(error)
                drawn.append(told)
        if all(isinstance(token, str) for token in drawn):
            # A row's fault, or the device's? The plainest op of all tells.
            self.drawer.argmax(logits[:1])
        return drawn

    def _draw(self, logits: Tensor, rows: Sequence[RowSampling]) -> list[_Drawn]:
        """One token for each row, -1 where the logits are not finite numbers."""
        drawn: dict[int, _Drawn] = {}
        ready, own = list(rows), logits
        for i, row in enumerate(rows):
            if row.shaped or (row.biased and logits.dtype != torch.float32):
                drawn[i] = shaped_row(logits[i].to("cpu", torch.float32), row)
            elif row.biased:
                own = logits.clone() if own is logits else own
                own[i] = processed(logits[i].cpu(), row).to(own.device)
                ready[i] = replace(row, processed=True)
        plain = [i for i in range(len(rows)) if i not in drawn]
        if plain:
            part = own if len(plain) == len(rows) else own[plain]
            tokens = self._plain(part, [ready[i] for i in plain])
            for i, token in zip(plain, tokens, strict=True):
                drawn[i] = token, own[i] if token == -1 and ready[i].processed else None
        return [drawn[i] for i in range(len(rows))]

    def _plain(self, logits: Tensor, rows: Sequence[RowSampling]) -> list[int]:
        """:meth:`_draw` of rows that the device may draw."""
        if all(r.params.greedy and not r.penalized for r in rows):
            return self.drawer.argmax(logits).tolist()
        drawn = self.drawer.sample(logits, rows)
        if drawn is not None:
            return drawn.tolist()
        wide = logits.to(torch.float32)
        return [sample_row(wide[i], row) for i, row in enumerate(rows)]


def _empty(drawn: _Drawn | str) -> bool:
    return not isinstance(drawn, str) and drawn[0] == -1


def _looked_at(row: RowSampling) -> bool:
    """Whether every token needs a look: its log-probability is wanted, or more may forbid it."""
    draw, params = row.draw, row.params
    held = row.position - row.prompt_length + 1 < params.min_tokens and params.stop_token_ids
    lists = draw.forbidden is not None or draw.bad_words
    return bool(draw.rated or lists or held or params.processors)


def _with_forced(row: RowSampling, sampled: Sampled) -> tuple[Sampled, ...] | str:
    """A token, and those that a grammar lets follow alone; or why the grammar failed."""
    draw, params = row.draw, row.params
    if draw.grammar is None and not params.mirostat:
        return (sampled,)
    try:
        draw.follow([sampled.token], params)
        if draw.grammar is None or draw.grammar.ended or _looked_at(row):
            return (sampled,)
        forced = draw.grammar.forced()[: row.room - 1]
        draw.follow(forced, params)
    except GrammarError as error:
        return RequestFault(error.message)
    return sampled, *map(Sampled, forced)
