"""The law of a draw: the exact probabilities of the next token, from the meaning of the fields.

Written in float64 NumPy from the meanings in ``engine/params.py``, the order in
``docs/parameters.md``, and the papers and programs that they name, without a look at the samplers
of ``engine/run``, which it judges. Where a paper and llama.cpp differ it follows llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from halfbyte import SamplingParams

Floats = NDArray[np.float64]
OUT = -math.inf


@dataclass(frozen=True)
class Lexicon:
    """What the law needs to know of a model: its tokens' texts, ends, and words as tokens.

    Attributes:
        texts: text of each token; special ones have none.
        ends: tokens that end a text.
        words: a bad word -> its token sequences, with and without a space before it.
    """

    texts: Sequence[str]
    ends: frozenset[int]
    words: Mapping[str, Sequence[tuple[int, ...]]]


@dataclass(frozen=True)
class Law:
    """Probabilities of one draw.

    Attributes:
        branches: (chance, probabilities [V]): several where a coin comes before the draw.
        margin: how near the nearest decision of a filter is; within float32's rounding of a cut
            neither side is wrong.
    """

    branches: tuple[tuple[float, Floats], ...]
    margin: float

    @cached_property
    def chances(self) -> Floats:
        """Of each branch."""
        return np.array([chance for chance, _ in self.branches])

    @cached_property
    def mixed(self) -> Floats:
        """Probabilities [V] over all branches."""
        return np.sum([chance * p_V for chance, p_V in self.branches], axis=0)


def softmax(logits_V: Floats) -> Floats:
    """Probabilities [V]."""
    weights = np.exp(logits_V - logits_V.max())
    return weights / weights.sum()


def masked(
    logits_V: Floats, p: SamplingParams, text: Sequence[int], made: int, lexicon: Lexicon
) -> Floats:
    """Without what may not be drawn; ``made`` tokens of ``text`` are the answer's."""
    out = logits_V.copy()
    if p.allowed_token_ids is not None:
        out[[i for i in range(len(out)) if i not in p.allowed_token_ids]] = OUT
    for word in p.bad_words:
        for ids in lexicon.words[word]:
            if tuple(text[len(text) - len(ids) + 1 :]) == ids[:-1]:
                out[ids[-1]] = OUT
    if made < p.min_tokens:
        held = set(p.stop_token_ids) | (set() if p.ignore_eos else lexicon.ends)
        out[list(held)] = OUT
    return out


def penalized(logits_V: Floats, p: SamplingParams, text: Sequence[int], made: int) -> Floats:
    """After the repetition, presence and frequency penalties."""
    out = logits_V.copy()
    for token in set(text):
        factor = p.repetition_penalty
        out[token] = out[token] / factor if out[token] > 0 else out[token] * factor
    answer = text[len(text) - made :]
    for token in set(answer):
        out[token] -= p.presence_penalty + p.frequency_penalty * answer.count(token)
    return out


def repetitions(p: SamplingParams, text: Sequence[int], texts: Sequence[str]) -> dict[int, int]:
    """Each token that would go on with a repetition -> the length of the longest such."""

    def breaks(token: int) -> bool:
        return not texts[token] or any(b in texts[token] for b in p.dry_sequence_breakers)

    if p.dry_penalty_last_n >= 0:
        text = text[max(0, len(text) - p.dry_penalty_last_n) :]
    longest: dict[int, int] = {}
    for place in range(1, len(text)):
        length = 0
        while length < place and text[place - 1 - length] == text[len(text) - 1 - length]:
            if breaks(text[place - 1 - length]):
                break
            length += 1
        # A token that breaks sequences is none's continuation: as llama.cpp exempts it.
        if length and not breaks(text[place]):
            longest[text[place]] = max(length, longest.get(text[place], 0))
    return longest


def tempered(logits_V: Floats, p: SamplingParams) -> Floats:
    """Divided by the temperature, which moves by the share of the largest possible entropy."""
    heat = p.temperature
    if p.dynatemp_range:
        p_V = softmax(logits_V)
        p_V = p_V[p_V > 0]
        most = math.log(np.isfinite(logits_V).sum())
        share = float(-(p_V * np.log(p_V)).sum()) / most if most > 0 else 0.0
        heat = p.temperature - p.dynatemp_range
        heat += 2 * p.dynatemp_range * share**p.dynatemp_exponent
    return logits_V / heat


class Cuts:
    """Filters one after the other, and the narrowest decision among them."""

    def __init__(self, logits_V: Floats) -> None:
        self.logits_V = logits_V.copy()
        self.margin = math.inf

    def keep(self, kept: NDArray[np.bool_], distances: Floats | float) -> None:
        self.logits_V[~kept] = OUT
        self.margin = min(self.margin, float(np.min(np.abs(distances))))

    def keep_first(self, cost_V: Floats, mass: float) -> None:
        """The tokens of least cost, up to and with the one that brings their mass to ``mass``."""
        p_V = softmax(self.logits_V)
        alive = int((p_V > 0).sum())
        order = np.lexsort((-p_V, cost_V))[:alive]
        sums = np.cumsum(p_V[order])
        count = min(int((sums < mass).sum()) + 1, alive)
        kept = np.zeros(len(p_V), bool)
        kept[order[:count]] = True
        gap = math.inf if count == alive else cost_V[order[count]] - cost_V[order[count - 1]]
        self.keep(kept, np.append(sums[:-1] - mass, gap) if alive > 1 else math.inf)


def filtered(logits_V: Floats, p: SamplingParams) -> tuple[Cuts, Floats]:
    """After top-n-sigma, top-k, typical, top-p and min-p; and the probabilities [V] then."""
    cuts = Cuts(logits_V)
    if p.top_n_sigma > 0:
        alive = np.isfinite(logits_V)
        least = logits_V.max() - p.top_n_sigma * logits_V[alive].std()
        cuts.keep(logits_V >= least, logits_V[alive] - least)
    if p.top_k > 0:
        order = np.argsort(-cuts.logits_V, kind="stable")
        kept = np.zeros(len(order), bool)
        kept[order[: p.top_k]] = True
        edge = cuts.logits_V[order[p.top_k - 1 : p.top_k + 1]]
        cuts.keep(kept, edge[0] - edge[1] if np.isfinite(edge).all() else math.inf)
    if p.typical_p < 1:
        p_V = softmax(cuts.logits_V)
        with np.errstate(divide="ignore", invalid="ignore"):
            surprise_V = -np.log(p_V)
            entropy = np.nansum(p_V * surprise_V)
        cuts.keep_first(np.abs(surprise_V - entropy), p.typical_p)
    if p.top_p < 1:
        cuts.keep_first(-softmax(cuts.logits_V), p.top_p)
    p_V = softmax(cuts.logits_V)
    if p.min_p > 0:
        cuts.keep(p_V >= p.min_p * p_V.max(), p_V / p_V.max() - p.min_p)
    return cuts, softmax(cuts.logits_V)


def next_law(
    raw_V: Floats,
    p: SamplingParams,
    text: Sequence[int],
    made: int,
    lexicon: Lexicon,
    mu: float | None = None,
) -> Law:
    """The law of the token after ``text``, whose last ``made`` tokens are the answer's.

    ``mu`` is the surprise in bits that mirostat allows now.
    """
    logits_V = masked(raw_V, p, text, made, lexicon)
    for token, bias in p.logit_bias.items():
        logits_V[token] += bias
    logits_V = penalized(logits_V, p, text, made)
    if p.dry_multiplier:
        for token, length in repetitions(p, text, lexicon.texts).items():
            if length >= p.dry_allowed_length:
                excess = length - p.dry_allowed_length
                logits_V[token] -= p.dry_multiplier * p.dry_base**excess
    for processor in p.processors:
        logits_V = processor(text, torch.from_numpy(logits_V)).numpy()
    logits_V = tempered(logits_V, p)
    if p.mirostat:
        assert mu is not None
        with np.errstate(divide="ignore"):
            bits_V = -np.log2(softmax(logits_V))
        kept = (bits_V <= mu) | (bits_V == bits_V.min())
        cuts = Cuts(logits_V)
        cuts.keep(kept, bits_V[np.isfinite(bits_V)] - mu)
        return Law(((1.0, softmax(cuts.logits_V)),), cuts.margin)
    cuts, p_V = filtered(logits_V, p)
    if not p.xtc_probability:
        return Law(((1.0, p_V),), cuts.margin)
    likely = p_V >= p.xtc_threshold
    margin = min(cuts.margin, float(np.abs(p_V - p.xtc_threshold).min()))
    if likely.sum() < 2:
        return Law(((1.0, p_V),), margin)
    least = np.flatnonzero(likely)[np.argmin(p_V[likely])]
    likely[least] = False
    rest_V = np.where(likely, 0.0, p_V)
    chance = p.xtc_probability
    return Law(((1 - chance, p_V), (chance, rest_V / rest_V.sum())), margin)


def laws(
    raw_V: Floats,
    p: SamplingParams,
    prompt: Sequence[int],
    drawn: Sequence[int],
    lexicon: Lexicon,
    known: dict[Any, Law],
    margin: float,
) -> Iterator[tuple[Law, int]]:
    """The law of each drawn token, given those before it; up to the first that float32 may miss.

    Leaving out by what was drawn *before* does not bend the laws of what is left. ``known`` keeps
    the laws between texts.
    """
    mu = 2 * p.mirostat_tau
    for made, token in enumerate(drawn):
        key = (*drawn[:made], mu)
        if key not in known:
            text = [*prompt, *drawn[:made]]
            known[key] = next_law(raw_V, p, text, made, lexicon, mu)
        law = known[key]
        if law.margin < margin:
            return
        yield law, token
        if p.mirostat and law.mixed[token] > 0:
            mu -= p.mirostat_eta * (-math.log2(law.mixed[token]) - p.mirostat_tau)


def chi_square(draws: Iterable[tuple[Floats, int]], least: float) -> tuple[float, int, float]:
    """Pearson's statistic, its degrees of freedom and the chance of a larger one.

    A token counts under its rank in its own draw's probabilities [V]; ranks are joined until at
    least ``least`` draws are expected. Where the laws differ from draw to draw the counts vary less
    than those of one law with the mean probabilities, so the chance given is too large, never too
    small.
    """
    laws_: dict[int, Floats] = {}
    tokens: dict[int, list[int]] = {}
    for p_V, token in draws:
        laws_[id(p_V)] = p_V
        tokens.setdefault(id(p_V), []).append(token)
    size = max(len(p_V) for p_V in laws_.values())
    # Where branches are counted, most draws have one or two.
    laws_ = {key: np.pad(p_V, (0, size - len(p_V))) for key, p_V in laws_.items()}
    expected, found = np.zeros(size), np.zeros(size)
    for key, p_V in laws_.items():
        order = np.argsort(-p_V, kind="stable")
        expected += len(tokens[key]) * p_V[order]
        found += np.bincount(np.argsort(order)[tokens[key]], minlength=size)
    cells: list[tuple[float, float]] = []
    want = got = 0.0
    for one, other in zip(expected, found, strict=True):
        want, got = want + one, got + other
        if want >= least:
            cells.append((want, got))
            want = got = 0.0
    if cells:
        cells[-1] = (cells[-1][0] + want, cells[-1][1] + got)
    statistic = sum((got - want) ** 2 / want for want, got in cells)
    freedom = max(len(cells) - 1, 0)
    if not freedom:
        return statistic, 0, 1.0
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return statistic, freedom, float(torch.special.gammaincc(half[0], half[1]))
