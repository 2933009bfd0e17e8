"""The sampler and the greedy choice."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..codegen.case import (
    OutputCheck,
    PreparedCase,
    PtxCase,
    same_bits,
    type_of,
    undefined_workspace,
    within,
)
from ..codegen.launcher import Emulation
from ..codegen.variant import Variant
from . import reference as sampling_reference
from .op import argmax, sample
from .rows import TokenChoice, pack_choices, reset_counts

_VOCABULARY = 4104
"""A tile of logits and a few more, in whole eights."""


def allowed_tokens(logits_V: Tensor, choice: TokenChoice, counts_V: Tensor | None) -> set[int]:
    """Tokens that count as right: the reference's, and that of exact arithmetic.

    ``logits`` are float32 [V], ``counts`` int32 [V] or None. The reference sums probabilities in
    float32, one after the other, so where ``top_p`` falls within its rounding error of a token's
    edge it may keep one token more or less.
    """
    tokens = {sampling_reference.sample(logits_V, choice, counts_V)}
    if choice.top_p < 1.0 and choice.temperature > 0:
        for top_p in (choice.top_p - 3e-6, choice.top_p + 3e-6):
            nudged = replace(choice, top_p=top_p)
            tokens.add(sampling_reference.sample(logits_V, nudged, counts_V))
    return tokens


def _argmax_case(variant: Variant, emulation: Emulation, rng: torch.Generator) -> PreparedCase:
    """Ties, a row with a NaN, and logits beyond the valid ids; two programs a row, and one."""
    dtype, unit = type_of(variant, "logits_ptr"), variant.constants["UNIT"]
    logits = torch.randn(3, _VOCABULARY, generator=rng).clamp(max=2.0).to(dtype)
    logits[:, -unit] = math.nan
    valid = _VOCABULARY - unit
    want = [int((row == row.max()).nonzero()[0]) for row in logits[:, :valid].float()]
    logits[1, 17] = math.nan
    want[1] = -1
    space = undefined_workspace(emulation)

    def call() -> list[OutputCheck]:
        return [
            same_bits(
                f"ids of {rows} rows",
                argmax(logits[:rows], valid=valid, workspace=space),
                torch.tensor(want[:rows]),
            )
            for rows in (2, 3)
        ]

    return call


def _sample_case(variant: Variant, emulation: Emulation, rng: torch.Generator) -> PreparedCase:
    """Rows with every filter, flat and peaked, penalties where the variant has them."""
    dtype = type_of(variant, "logits_ptr")
    penalties = variant.constants["PENALTIES"]
    vocabulary = _VOCABULARY if variant.constants["UNIT"] > 1 else _VOCABULARY - 3
    logits = torch.randn(4, vocabulary, generator=rng)
    logits *= torch.tensor([4.0, 1.0, 0.01, 2.0])[:, None]
    logits = logits.to(dtype)
    counts = None
    if penalties:
        counts = torch.full((2, vocabulary), -1, dtype=torch.int32)
        for slot, prompt in ((0, 10), (1, 25)):
            tokens = torch.randint(0, vocabulary, (30,), generator=rng)
            reset_counts(counts, slot, tokens, prompt)
    seed = int(torch.randint(0, 2**62, (1,), generator=rng))
    choices = [
        TokenChoice(1.0, 50, 0.9, 0.01, 1.3, 0.3, 0.7, seed, 3, slot=0 if penalties else -1),
        TokenChoice(0.7, 0, 0.95, 0.0, 1.1, 0.0, 0.2, seed + 1, 4, slot=1 if penalties else -1),
        TokenChoice(1.7, 0, 1.0, seed=seed + 2, position=5),
        TokenChoice(),
    ]
    if not penalties:
        choices = [replace(c, repetition=1.0, presence=0.0, frequency=0.0) for c in choices]
    wanted = [
        allowed_tokens(
            logits[row].float(),
            choice,
            counts[choice.slot] if counts is not None and choice.slot >= 0 else None,
        )
        for row, choice in enumerate(choices)
    ]
    floats, ints = pack_choices(choices)

    def call() -> list[OutputCheck]:
        given = None if counts is None else counts.clone()
        logprobs = torch.full((len(choices),), math.nan)
        out = sample(logits, floats, ints, counts_PV=given, logprobs=logprobs)
        tokens = out.tolist()
        right = torch.tensor([t in w for t, w in zip(tokens, wanted, strict=True)])
        checks = [same_bits("tokens", right, torch.ones_like(right))]
        if not bool(right.all()):
            return checks
        true = [sampling_reference.logprob(logits[i].float(), t) for i, t in enumerate(tokens)]
        # A float32 sum of some thousand terms, and a logarithm.
        checks.append(within("logprobs", logprobs, torch.tensor(true), 1e-4))
        if given is not None and counts is not None:
            after = counts.clone()
            for choice, token in zip(choices, tokens, strict=True):
                if choice.slot >= 0:
                    after[choice.slot, token] += 1
            checks.append(same_bits("counts", given, after))
        return checks

    return call


def cases() -> dict[str, PtxCase]:
    """By the kernel's dotted name."""
    return {
        "sampling.argmax": _argmax_case,
        "sampling.sample": _sample_case,
    }
