"""Which form of message content a chat template takes: a text, or a list of parts.

Templates say it nowhere. Some add the content to a text, some walk over its parts, many do both.
Reading it off the source would mean to follow variables, macros and filters, so a few tiny
conversations are rendered: a form is taken when the words of the content come out, and nothing
of the list around them does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

TEXT, PART, _PARTS = "text", "part", "parts"
Content = str | list[dict[str, Any]]

# A key that no template reads: where it comes out, the list was printed as a whole.
_KEY = "qxkeyqx"
_CALL = {
    "id": "callabcd1",
    "type": "function",
    "function": {"name": "qxnameqx", "arguments": {"qxcity": "qxplace"}},
}
TOOL_PROBE: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "qxnameqx",
        "description": "qxaboutqx",
        "parameters": {
            "type": "object",
            "properties": {"qxcity": {"type": "string", "description": "qxwhereqx"}},
            "required": ["qxcity"],
        },
    },
}
"""A tool whose name comes out of a template that takes tools."""
# The conversation, as roles, in which the content of a role is tried.
_PROBES = {
    "user": ("user",),
    "system": ("system", "user"),
    "assistant": ("user", "assistant", "user"),
    "tool": ("user", "call", "tool"),
}
_LIKE = {"developer": "system", "model": "assistant"}
_LIKE |= dict.fromkeys(("function", "ipython", "observation", "tool_results"), "tool")


class ContentForms:
    """The forms that one template takes, found out when they are first asked for.

    Args:
        render: the template's text for messages; None when it fails.
    """

    def __init__(self, render: Callable[[Sequence[Mapping[str, Any]]], str | None]) -> None:
        self._render = render
        self._known: dict[tuple[str, str], bool] = {}

    def fit(self, role: str, content: Content) -> Content:
        """The content in a form that the template takes, which is the given one if possible.

        Args:
            role: the message's role.
            content: a text, or parts with ``type`` "text" and ``text``.
        """
        role = _LIKE.get(role, role if role in _PROBES else "user")
        if not (self._takes(role, TEXT) or self._takes(role, PART)):
            role = "user"  # the conversation was refused, or the role's content is left out
        if isinstance(content, str):
            keep = self._takes(role, TEXT) or not self._takes(role, PART)
            return content if keep else as_part(content)
        if self._takes(role, PART if len(content) == 1 else _PARTS):
            return content
        text = "\n".join(part["text"] for part in content)
        keep = self._takes(role, TEXT) or not self._takes(role, PART)
        return text if keep else as_part(text)

    def _takes(self, role: str, form: str) -> bool:
        """Whether content of a form comes out of a conversation that ends with the role."""
        if (role, form) not in self._known:
            words = ["qxoneqx", "qxtwoqx"] if form == _PARTS else ["qxoneqx"]
            probe: Content = [{"type": "text", "text": word, _KEY: _KEY} for word in words]
            messages: list[dict[str, Any]] = []
            for other in _PROBES[role]:
                if other == "call":
                    messages.append({"role": "assistant", "tool_calls": [_CALL]})
                elif other == role:
                    messages.append({"role": role, "content": words[0] if form == TEXT else probe})
                else:
                    messages.append({"role": other, "content": self.fit(other, "qxotherqx")})
            text = (self._render(messages) or "").casefold()
            taken = all(word in text for word in words) and _KEY not in text
            self._known[role, form] = taken
        return self._known[role, form]


def as_part(text: str) -> list[dict[str, Any]]:
    """A text as a list of one part."""
    return [{"type": "text", "text": text}]
