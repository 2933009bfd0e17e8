"""What a model can do, as far as its chat template and its special tokens tell."""

from __future__ import annotations

from halfbyte.errors import TemplateError

from ...engine.serve.client import TextCodec
from .formats import call_format, reasoning_format
from .infill import infill_tokens


def template_abilities(codec: TextCodec) -> list[str]:
    """Ollama's words for it: ``tools``, ``thinking`` and ``insert``. May take a while.

    Args:
        codec: the model's.
    """
    found = []
    if codec.has_chat_template and _takes_tools(codec):
        found.append("tools")
    if reasoning_format(codec.template_source(tools=False)) is not None:
        found.append("thinking")
    if infill_tokens(codec) is not None:
        found.append("insert")
    return found


def _takes_tools(codec: TextCodec) -> bool:
    """Whether tools would be honoured; they are not where the template goes past its limits."""
    if call_format(codec.template_source(tools=True)) is None:
        return False
    try:
        return codec.takes_tools
    except TemplateError:
        return False
