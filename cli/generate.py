"""``halfbyte generate``: answer one prompt, streamed, or many as one batch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as opt
from .asking import Asking
from .loading import check_room, open_engine
from .prompts import read_prompts
from .words import WordsAsked

if TYPE_CHECKING:
    from ..engine.params import SamplingParams


@opt.flat
def generate(
    *,
    asked: WordsAsked,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="FILE", help="Read text from a UTF-8 file."),
    ] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Every line is a prompt; run them as one batch.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line, and no other text.")
    ] = False,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="Answer the prompt as a message, or continue its text.",
            show_default="chat, if the model has a template",
        ),
    ] = None,
    max_tokens: opt.MaxTokens = 256,
    ignore_eos: opt.IgnoreEos = False,
    grammar: opt.GrammarOptions,
    sampling: opt.SamplingOptions,
    engine: opt.EngineFlags,
) -> None:
    """Answer a prompt through the model's chat template, or continue a text with --raw.

    The text goes to stdout as it comes, the speed to stderr. Piped text follows the prompt.

    The sampling defaults are those that llama.cpp users know; -c, -t, --n-predict and more of
    its names work, too.

    For a repeatable run give --seed, or --temperature 0.
    """
    params = sampling.params(max_tokens, ignore_eos=ignore_eos, grammar=grammar.spec())
    if params.logprobs is not None and not as_json:
        raise typer.BadParameter("--logprobs needs --json, where they are shown")
    options = engine.fields()
    model, prompt = asked.model_and_prompt()
    prompts = read_prompts(prompt, file, lines)
    asking = Asking(chat, asked.system)
    if lines:
        failed = _answer_many(model, prompts, asking, params, options, as_json)
    else:
        failed = answer_one(model, prompts[0], asking, params, options, as_json)
    if failed:
        raise typer.Exit(1)


def answer_one(
    model: str,
    prompt: str,
    asking: Asking,
    params: SamplingParams,
    options: dict[str, Any],
    as_json: bool = False,
) -> bool:
    """Load a model and stream its answer to one prompt; True when it failed.

    Raises RequestError before the weights are read when the context cannot hold the prompt.
    """
    check_room(model, options["max_context"], prompt, asking)
    with open_engine(model, options) as engine:
        from .answers import run_single

        asking.say(engine, model)
        return run_single(engine, prompt, params, asking, as_json)


def _answer_many(
    model: str,
    prompts: list[str],
    asking: Asking,
    params: SamplingParams,
    options: dict[str, Any],
    as_json: bool,
) -> bool:
    with open_engine(model, options) as engine:
        from .answers import run_batch

        asking.say(engine, model)
        return run_batch(engine, prompts, params, asking, as_json)
