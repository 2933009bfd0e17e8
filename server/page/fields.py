"""GET /page/fields: the sampling fields that a chat may have, for the settings of the page."""

from __future__ import annotations

from typing import Any

from ...engine.params import defaults, table
from ..responses import ResponseModel

CHAT_DEFAULTS = {
    name: param.cli_default
    for name, param in table().items()
    if param.http and param.cli_default is not None
}
"""What a chat on the page begins with, as one on the command line does."""
# Without a limit a chat goes on to the end of the context.
_DEFAULTS = {**defaults(), **CHAT_DEFAULTS, "max_tokens": None}


class PageField(ResponseModel):
    """One field.

    Attributes:
        name: in a request's body.
        kind: type of its value, as the table of fields has it.
        low: least value, or of each entry.
        high: largest value, or of each entry.
        most: most entries of a list.
        default: where it is not given.
        names: values of a ``name``.
        range: the values that are allowed, in English.
        meaning: what it does, in English.
        usual: whether most people know it.
    """

    name: str
    kind: str
    low: float
    high: float
    most: int
    default: Any
    names: list[str]
    range: str
    meaning: str
    usual: bool


class PageFields(ResponseModel):
    """Response of GET /page/fields."""

    fields: list[PageField]


def page_fields() -> PageFields:
    """The fields, in the order of the table."""
    return PageFields(
        fields=[
            PageField(
                name=name,
                kind=param.kind,
                low=param.low,
                high=param.high,
                most=param.most,
                default=_plain(_DEFAULTS[name]),
                names=list(param.names),
                range=param.range,
                meaning=param.meaning,
                usual=param.usual,
            )
            for name, param in table().items()
            if param.http
        ]
    )


def _plain(value: Any) -> Any:
    """A default as JSON has it."""
    if isinstance(value, tuple):
        return list(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else {}
