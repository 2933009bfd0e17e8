"""What a request may ask of sampling: one table of fields, from which all faces are made.

Each line of :class:`SamplingParams` says a field's type, range, default and meaning, and where it
may be given. The command line's options, the chat's ``/set``, the server's schema and
``docs/parameters.md`` are made from :func:`table`; ``fields.py`` repeats the types for checkers.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from halfbyte.errors import RequestError

from .param_table import (
    INT31,
    INT63,
    MAX_ALLOWED,
    MAX_CHOICES,
    MAX_IDS,
    MAX_STOP_STRINGS,
    MAX_TOP_LOGPROBS,
    Param,
    biases_field,
    checked,
    entry_field,
    ids_field,
    not_a_grammar,
    not_a_limit,
    not_processors,
    number_field,
    object_field,
    switch_field,
    texts_field,
    whole_field,
)

if TYPE_CHECKING:
    from torch import Tensor

    from .grammar.base import GrammarSpec
    from .grammar.limit import ReasoningLimit

    Processor = Callable[[Sequence[int], Tensor], Tensor]
    """Token ids of the text so far and float32 logits [V] of one row -> logits [V]."""

LEAST_TEMPERATURE = 1e-6
"""Below it only exact ties of float32 logits are told apart from the likeliest token: greedy."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when to stop; a value outside its range is refused."""

    temperature: float = number_field(
        1.0,
        0.0,
        100.0,
        "divides the logits; 0 always takes the likeliest token, and so does anything below 1e-6",
        usual=True,
        flags=("--temperature", "--temp"),
        cli_default=0.8,
        short="0 always takes the likeliest token.",
    )
    dynatemp_range: float = number_field(
        0.0,
        0.0,
        100.0,
        "the temperature moves within this distance of ``temperature``, by the entropy of the "
        "distribution: low where the model is sure; 0 is off",
        flags=("--dynatemp-range",),
        short="Temperature moves so far, by entropy; 0 = off.",
    )
    dynatemp_exponent: float = number_field(
        1.0,
        0.01,
        100.0,
        "shape of that move: the share of the largest entropy, to this power",
        flags=("--dynatemp-exp",),
        short="Shape of that move.",
    )
    top_k: int = whole_field(
        0,
        -1,
        INT31,
        "keep the k likeliest tokens; 0 or -1 is off",
        usual=True,
        flags=("--top-k",),
        cli_default=40,
    )
    top_n_sigma: float = number_field(
        0.0,
        -1.0,
        1000.0,
        "keep tokens whose logit is within so many standard deviations (of the logits that may "
        "be drawn) of the largest; 0 or less is off (Tang et al., 2024)",
        flags=("--top-n-sigma",),
        short="Keep logits within X deviations of the best; 0 = off.",
    )
    typical_p: float = number_field(
        1.0,
        0.0,
        1.0,
        "keep the tokens whose surprise is nearest to the entropy, up to this probability mass; "
        "1 is off (Meister et al., 2022)",
        flags=("--typical",),
        short="Keep the most typical tokens up to this mass; 1 = off.",
    )
    top_p: float = number_field(
        1.0,
        0.0,
        1.0,
        "keep the smallest set with at least this probability mass; 0 always takes the likeliest "
        "token, 1 is off (Holtzman et al., 2019)",
        usual=True,
        flags=("--top-p",),
        cli_default=0.95,
    )
    min_p: float = number_field(
        0.0,
        0.0,
        1.0,
        "drop tokens below this share of the likeliest one's probability; 0 is off",
        usual=True,
        flags=("--min-p",),
        cli_default=0.05,
    )
    xtc_probability: float = number_field(
        0.0,
        0.0,
        1.0,
        "with this chance all tokens above ``xtc_threshold`` but the least likely of them are "
        "dropped; 0 is off",
        flags=("--xtc-probability",),
        short="Chance to drop all likely tokens but the last; 0 = off.",
    )
    xtc_threshold: float = number_field(
        0.1,
        0.0,
        1.0,
        "probability from which a token counts for ``xtc_probability``",
        flags=("--xtc-threshold",),
        short="Probability from which a token is likely.",
    )
    mirostat: int = whole_field(
        0,
        0,
        2,
        "2 keeps the surprise of the text near ``mirostat_tau`` and replaces top_k, top_n_sigma, "
        "typical_p, top_p, min_p and XTC, which must be off; 0 is off, 1 is refused "
        "(Basu et al., 2020)",
        flags=("--mirostat",),
        short="2 keeps the surprise of the text even; 0 = off.",
    )
    mirostat_tau: float = number_field(
        5.0,
        0.0,
        100.0,
        "surprise that mirostat aims at, in bits",
        flags=("--mirostat-ent",),
        short="Surprise that mirostat aims at, in bits.",
    )
    mirostat_eta: float = number_field(
        0.1,
        0.0,
        1.0,
        "how fast mirostat follows",
        flags=("--mirostat-lr",),
        short="How fast mirostat follows.",
    )
    repetition_penalty: float = number_field(
        1.0,
        0.01,
        100.0,
        "divides positive and multiplies negative logits of tokens that are in the prompt or the "
        "output; 1 is off (CTRL, Keskar et al., 2019)",
        usual=True,
        flags=("--repetition-penalty",),
        short="1 = off.",
    )
    presence_penalty: float = number_field(
        0.0,
        -2.0,
        2.0,
        "subtracted once from logits of tokens in the output; 0 is off",
        usual=True,
        flags=("--presence-penalty",),
        short="0 = off.",
    )
    frequency_penalty: float = number_field(
        0.0,
        -2.0,
        2.0,
        "subtracted for each occurrence in the output; 0 is off",
        usual=True,
        flags=("--frequency-penalty",),
        short="0 = off.",
    )
    dry_multiplier: float = number_field(
        0.0,
        0.0,
        100.0,
        "a token that would go on with a repetition of n tokens loses ``dry_multiplier * "
        "dry_base ** (n - dry_allowed_length)``; 0 is off",
        flags=("--dry-multiplier",),
        short="Weight of the penalty of repetitions; 0 = off.",
    )
    dry_base: float = number_field(
        1.75,
        1.0,
        100.0,
        "growth of that loss with the repetition's length",
        flags=("--dry-base",),
        short="Growth of that penalty with their length.",
    )
    dry_allowed_length: int = whole_field(
        2,
        1,
        INT31,
        "shortest repetition that costs anything",
        flags=("--dry-allowed-length",),
        short="Shortest repetition that costs anything.",
    )
    dry_penalty_last_n: int = whole_field(
        -1,
        -1,
        INT31,
        "tokens that are searched for repetitions; -1 is all of them, 0 is off",
        flags=("--dry-penalty-last-n",),
        short="Tokens searched for repetitions; -1 = all.",
    )
    dry_sequence_breakers: Sequence[str] = texts_field(
        ("\n", ":", '"', "*"),
        MAX_STOP_STRINGS,
        "no repetition goes over a token that has one of these in its text, or over a special "
        "token; such a token itself never costs anything",
        flags=("--dry-sequence-breaker",),
        short="No repetition goes over TEXT; repeatable.",
    )
    logit_bias: Mapping[int, float] = biases_field(
        -100.0,
        100.0,
        "added to the logits of these token ids; -100 is as good as never",
        flags=("--logit-bias",),
        short="Add X to the logit of token ID; repeatable.",
    )
    allowed_token_ids: Sequence[int] | None = ids_field(
        None, MAX_ALLOWED, "only these tokens are drawn; None is all of them"
    )
    bad_words: Sequence[str] = texts_field(
        (),
        MAX_STOP_STRINGS,
        "words, of one token or several, whose last token is not drawn where it would complete "
        "them, with or without a space before them",
        flags=("--bad-word",),
        short="Never draw TEXT; repeatable.",
    )
    grammar: GrammarSpec | None = object_field(  # noqa: RUF009 (it gives a field of the dataclass)
        None,
        "the answer must match it: a JSON schema, a regular expression or a grammar",
        not_a_grammar,
    )
    reasoning_limit: ReasoningLimit | None = object_field(  # noqa: RUF009 (as above)
        None,
        "where the model thinks before it answers, so many tokens at most: then the marker of the "
        "end is all that may follow",
        not_a_limit,
    )
    processors: Sequence[Processor] = object_field(
        (),
        "callables that get the ids of a row's text and its float32 logits [V] and give "
        "logits [V]; in the library only",
        not_processors,
    )
    seed: int | None = whole_field(
        None,
        -INT63 - 1,
        INT63,
        "key of the random numbers; None or -1 draws one. Choice i of a request uses seed + i",
        usual=True,
        flags=("--seed",),
        short="Repeats a run; drawn when not given.",
    )
    n: int = whole_field(
        1,
        1,
        MAX_CHOICES,
        "answers to one prompt, which is computed once",
        flags=("--n",),
        short="Answers to one prompt.",
        http=False,
    )
    best_of: int | None = whole_field(
        None,
        1,
        MAX_CHOICES,
        "so many answers are made, and the ``n`` with the largest mean log-probability of a token "
        "are returned; None is ``n``",
        flags=("--best-of",),
        short="Make so many, show the --n likeliest.",
        http=False,
    )
    max_tokens: int | None = entry_field(
        256,
        Param(
            "whole",
            "most tokens of the answer; None is up to the context length",
            0,
            INT31,
            optional=True,
        ),
    )
    min_tokens: int = whole_field(
        0,
        0,
        INT31,
        "so many tokens are part of the answer: no end-of-text or stop token is drawn for them, "
        "and stop strings are not looked for in their text. Only where nothing else could be drawn "
        "is one drawn all the same, and ends the answer",
        flags=("--min-tokens",),
        short="Least tokens of the answer.",
    )
    stop: Sequence[str] = texts_field(
        (),
        MAX_STOP_STRINGS,
        "strings that end the text; they are not part of it. One string stands for a list of it",
        usual=True,
        flags=("--stop",),
        short="End the answer before TEXT; repeatable.",
    )
    stop_token_ids: Sequence[int] = ids_field((), MAX_IDS, "further token ids that end the text")
    shown_special_ids: Sequence[int] = ids_field(
        (), MAX_IDS, "special tokens that are part of the text, which hides the others", http=False
    )
    skip_special_tokens: bool = switch_field(
        "special tokens have no text; off, they are part of it as they are written", True
    )
    include_stop_str_in_output: bool = switch_field(
        "the string that ends the text, or the text of the token that does, is part of it"
    )
    ignore_eos: bool = switch_field(
        "an end-of-text token is drawn like any other, and does not end the answer"
    )
    logprobs: int | None = whole_field(
        None,
        0,
        MAX_TOP_LOGPROBS,
        "the log-probability of each drawn token comes with it, and those of so many likeliest; "
        "None is off",
        flags=("--logprobs",),
        short="With --json: log-probabilities, and N likeliest.",
        http=False,
    )
    prompt_logprobs: int | None = whole_field(
        None,
        0,
        MAX_TOP_LOGPROBS,
        "the same for the tokens of the prompt, but the first; None is off",
        http=False,
    )
    logprobs_mode: str = entry_field(
        "raw",
        Param(
            "name",
            "'raw': of the model's own distribution; 'processed': of the one that was drawn from",
            names=("raw", "processed"),
            http=False,
        ),
    )

    def __post_init__(self) -> None:
        for name, param in table().items():
            value = checked(name, param, getattr(self, name))
            object.__setattr__(self, name, value)
        if self.seed == -1:
            object.__setattr__(self, "seed", None)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, more than max_tokens {self.max_tokens}",
                param="min_tokens",
            )
        if self.best_of is not None and self.best_of < self.n:
            raise RequestError(
                f"best_of is {self.best_of}, less than n, which is {self.n}", param="best_of"
            )
        if self.mirostat:
            self._check_mirostat()
        if self.temperature - self.dynatemp_range < 0:
            raise RequestError(
                f"dynatemp_range is {self.dynatemp_range:g}, more than temperature "
                f"{self.temperature:g}: it would go below 0",
                param="dynatemp_range",
            )
        if self.grammar is not None and self.ignore_eos:
            raise RequestError(
                "ignore_eos is True beside a grammar, which says where the answer ends",
                param="ignore_eos",
                hint="leave one of them out",
            )
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestError(
                "allowed_token_ids is empty: nothing could be drawn; None allows all",
                param="allowed_token_ids",
            )

    def _check_mirostat(self) -> None:
        if self.mirostat == 1:
            raise RequestError(
                "mirostat is 1; expected 0 or 2", param="mirostat", hint="version 2 replaces it"
            )
        for name, off in REPLACED.items():
            value = getattr(self, name)
            if value != off and not (name in ("top_k", "top_n_sigma") and value <= 0):
                raise RequestError(
                    f"{name} is {value:g} beside mirostat, which replaces it; expected {off:g}",
                    param=name,
                )

    @property
    def greedy(self) -> bool:
        """True when the likeliest token is taken and no random number is drawn."""
        hottest = self.temperature + self.dynatemp_range
        return hottest < LEAST_TEMPERATURE or self.top_p == 0.0

    @property
    def heat(self) -> float:
        """The temperature to draw with: 0.0 when greedy."""
        return 0.0 if self.greedy else self.temperature

    @property
    def choices(self) -> int:
        """Answers that are made: ``best_of``, or ``n``."""
        return self.best_of or self.n


REPLACED = {
    "top_k": 0,
    "top_n_sigma": 0.0,
    "typical_p": 1.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "xtc_probability": 0.0,
}
"""What mirostat replaces -> the value that switches it off."""


@cache
def table() -> Mapping[str, Param]:
    """All sampling fields by name, in the order of :class:`SamplingParams`."""
    return {item.name: item.metadata["param"] for item in fields(SamplingParams)}


@cache
def defaults() -> Mapping[str, Any]:
    """The library's default of each sampling field."""
    blank = SamplingParams()
    return {name: getattr(blank, name) for name in table()}


def _documented() -> str:
    lines = [f"        {n}: {p.meaning}; {p.range}." for n, p in table().items()]
    return "\n".join(
        [
            f"{SamplingParams.__doc__}\n\n    Attributes:",
            *lines,
            "\n    Raises:",
            "        RequestError: a value is outside its range; ``param`` names the field.\n    ",
        ]
    )


SamplingParams.__doc__ = _documented()


def sampling_params(given: object, changes: Mapping[str, Any]) -> SamplingParams:
    """The parameters of a call: ``given`` ones or the defaults, with ``changes`` of fields.

    Raises:
        RequestError: ``given`` is something else, or a field is unknown or out of its range.
    """
    params = SamplingParams() if given is None else given
    if not isinstance(params, SamplingParams):
        raise RequestError(f"params is {params!r:.60}; expected SamplingParams", param="params")
    known = table()
    for name in changes:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise RequestError(
                f"unknown sampling field {name!r:.60}",
                param=name,
                hint=f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}",
            )
    return replace(params, **changes) if changes else params


PROMPT_ONLY = SamplingParams(temperature=0.0, max_tokens=0)
"""Parameters of a request whose prompt is read, and that has no answer."""
