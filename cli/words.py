"""Which of a command's words is the model and which the prompt."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from halfbyte.errors import HalfbyteError, ModelNotFoundError


@dataclass(frozen=True, slots=True)
class WordsAsked:
    """The model and the message of a command; a parameter of this type stands for these options."""

    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [PROMPT]",
            show_default=False,
            help="A single word that is not a model is the prompt; - is stdin.",
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Name, local file or folder, or pulled repository.",
        ),
    ] = None
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The prompt.")
    ] = None
    system: Annotated[str, typer.Option("--system", metavar="TEXT", help="System message.")] = ""

    def model_and_prompt(self) -> tuple[str, str | None]:
        """See :func:`model_and_prompt`, with its errors."""
        return model_and_prompt(self.words, self.model, self.prompt)


# A name with a tag, or one that ends in a version, as other programs call models.
_LIKE_A_MODEL = re.compile(r"[A-Za-z][\w.-]*:[\w.-]+|[A-Za-z]{3,}[-_.]?\d[\w.-]*", re.ASCII)


def model_and_prompt(
    words: list[str] | None, model: str | None, prompt: str | None
) -> tuple[str, str | None]:
    """The model (the default one when none was named) and the prompt, or None.

    Args:
        words: positional arguments, in order.
        model: value of ``--model``.
        prompt: value of ``--prompt``.

    Raises:
        ModelNotFoundError: the first of several words is no model, or a single one is almost one
            or looks like one.
        A usage error: something was given twice.
    """
    from ..loaders.store.sources import DEFAULT_MODEL

    left = list(words or ())
    if left and model is None and (len(left) > 1 or prompt is not None or is_model(left[0])):
        model = left.pop(0)
        if left and not is_model(model):
            text = " ".join([model, *left])
            raise _no_model(model, f'if all of it is the prompt, put it in quotes: "{text:.60}"')
    if left and prompt is not None:
        raise typer.BadParameter(f"{left[0]!r:.60} and --prompt: give one prompt")
    if left:
        # Words that the shell took apart belong together.
        prompt = " ".join(left)
        if len(left) == 1 and model is None and (_near(word := left[0]) or _like_a_model(word)):
            raise _no_model(word, f"if it is the prompt, write -p {word:.60}")
    return DEFAULT_MODEL if model is None else model, prompt


def is_model(word: str) -> bool:
    """Whether a word names a model: registered, on the hub, an address, or a path to one."""
    from ..loaders.store.sources import parse_source

    try:
        if parse_source(word) is not None:
            return True
    except HalfbyteError:
        return True  # an address that will be refused by name
    if word.startswith(("/", "./", "../", "~/")) or word.lower().endswith(".gguf"):
        return not any(c.isspace() for c in word) or os.path.exists(word)
    return _holds_model(word)


def _holds_model(word: str) -> bool:
    """Whether a GGUF file or a folder with one or with a configuration lies at a path."""
    try:
        path = Path(word)
        if path.is_dir():
            return (path / "config.json").is_file() or any(path.glob("*.gguf"))
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except (OSError, ValueError):
        return False


def _like_a_model(word: str) -> bool:
    return _LIKE_A_MODEL.fullmatch(word) is not None


def _near(word: str) -> str:
    """The registered name that a word is almost, or ""."""
    from ..loaders.store.sources import registered_names

    name = word.lower().partition(":")[0]
    return next(iter(difflib.get_close_matches(name, registered_names(), 1, 0.8)), "")


def _no_model(word: str, prompt_hint: str) -> ModelNotFoundError:
    near = _near(word)
    return ModelNotFoundError(
        f"no model {word!r:.120}" + (f"; did you mean {near}?" if near else ""),
        hint=f"{prompt_hint}; `halfbyte list` names the models that are here",
    )
