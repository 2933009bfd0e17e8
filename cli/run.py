"""``halfbyte run``: the shortest way to a model, for one answer or a chat."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from . import options as opt
from .asking import Asking
from .chat import NoHistory, talk
from .console import is_terminal
from .generate import answer_one
from .prompts import read_prompts
from .words import WordsAsked


@opt.flat
def run(
    *,
    asked: WordsAsked,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt's text instead of answering it.")
    ] = False,
    max_tokens: opt.MaxTokens = -1,
    no_history: NoHistory = False,
    grammar: opt.GrammarOptions,
    sampling: opt.SamplingOptions,
    engine: opt.EngineFlags,
) -> None:
    """Answer PROMPT; without one, chat. Piped text follows the prompt.

    halfbyte run smollm2 "Why is the sky blue?"

    cat report.txt | halfbyte run smollm2 "Summarize:"
    """
    params = sampling.params(max_tokens, grammar=grammar.spec())
    if params.logprobs is not None:
        raise typer.BadParameter("--logprobs is shown by `halfbyte generate --json` alone")
    options = engine.fields()
    model, prompt = asked.model_and_prompt()
    if prompt is None and is_terminal(sys.stdin):
        if raw:
            raise typer.BadParameter("--raw needs a PROMPT to continue")
        talk(model, None, asked.system, params, options, keep=not no_history)
        return
    (text,) = read_prompts(prompt, None, lines=False)
    asking = Asking(False if raw else None, asked.system)
    if answer_one(model, text, asking, params, options):
        raise typer.Exit(1)
