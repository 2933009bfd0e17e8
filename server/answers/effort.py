"""How much a model thinks before it answers, as far as its chat template can tell it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbyte.errors import RequestError

from .formats import reasoning_format

_SWITCH, _LEVEL = "enable_thinking", "reasoning_effort"
# OpenAI's default: the model thinks as much as it does unasked.
_USUAL = "medium"


def effort_switches(
    effort: str | None, given: Mapping[str, Any] | None, template: str
) -> dict[str, Any]:
    """What a chat template is told for a ``reasoning_effort``.

    Args:
        effort: as it was asked for; None asks for nothing.
        given: template switches that the client set itself.
        template: the model's.

    Raises:
        RequestError: the template has no way to tell the model that, or the client's own switch
            says otherwise.
    """
    if effort is None:
        return {}
    thinks = effort != "none"
    if (given or {}).get(_SWITCH, thinks) is not thinks:
        raise RequestError(
            f"{_LEVEL} is {effort!r}, but chat_template_kwargs.{_SWITCH} is "
            f"{str(not thinks).lower()}",
            param=_LEVEL,
        )
    switch = {_SWITCH: thinks} if _SWITCH in template else {}
    if thinks and _LEVEL in template:
        return {**switch, _LEVEL: effort}
    able = reasoning_format(template) is not None
    if (able and effort == _USUAL) or (not thinks and (switch or not able)):
        return switch
    known = [*(["none"] if switch or not able else []), *([_USUAL] if able else [])]
    hint = "" if not known else f"use {' or '.join(known)}, or "
    raise RequestError(
        f"{_LEVEL} is {effort!r}, which the chat template of this model cannot tell it",
        param=_LEVEL,
        code="unsupported_value",
        hint=f"{hint}leave it out",
    )
