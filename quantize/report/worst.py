"""The places where a quantized model differs most from its reference, in their text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...engine.text.tokenizer import Tokenizer
from ..places import Places
from ..windows import Windows

# Tokens of text before a place and after it.
_BEFORE, _AFTER = 24, 8


@dataclass(frozen=True, slots=True)
class WorstToken:
    """One place.

    Attributes:
        window: number from 0.
        place: of the token before the gap, from 0 in the window.
        kl: divergence there, nats.
        before: text in front of the gap.
        token: what the text has there.
        after: text behind that.
        choice: the quantized model's first choice.
        share: its probability under that model.
        choice_reference: the reference's first choice.
        share_reference: its probability under the reference.
    """

    window: int
    place: int
    kl: float
    before: str
    token: str
    after: str
    choice: str
    share: float
    choice_reference: str
    share_reference: float


def worst_tokens(
    places: Places, windows: Windows, tokenizer: Tokenizer, count: int = 20
) -> tuple[WorstToken, ...]:
    """The places with the largest KL divergence [W, P], the largest first."""
    width = places.kl.shape[1]
    order = places.kl.flatten().argsort(descending=True, stable=True)[:count]
    found = []
    for index in order.tolist():
        window, at = divmod(index, width)
        ids, place = windows.ids[window], windows.first + at
        first = max(0, place + 1 - _BEFORE)

        def text(some: Sequence[int]) -> str:
            return tokenizer.decode(some, skip_special=False, continuation=True)

        found.append(
            WorstToken(
                window=window,
                place=place,
                kl=float(places.kl[window, at]),
                before=text(ids[first : place + 1]),
                token=text([ids[place + 1]]),
                after=text(ids[place + 2 : place + 2 + _AFTER]),
                choice=text([int(places.choice[window, at])]),
                share=float(places.share[window, at]),
                choice_reference=text([int(places.choice_reference[window, at])]),
                share_reference=float(places.share_reference[window, at]),
            )
        )
    return tuple(found)
