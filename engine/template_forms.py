"""Which form of message content a chat template takes: a text, or a list of parts.

Templates say it nowhere. Some add the content to a text, some walk over its parts, many do both.
Reading it off the source would mean to follow variables, macros and filters, so a few tiny
conversations are rendered: a form is taken when the words of the content come out, and nothing
of the list around them does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

TEXT, PART, PARTS = "text", "part", "parts"
Content = str | list[dict[str, Any]]

# A key that no template reads: where it comes out, the list was printed as a whole.
_KEY = "qxkeyqx"
_CALL = {
    "id": "callabcd1",
    "type": "function",
    "function": {"name": "qxnameqx", "arguments": {"qxcity": "qxplace"}},
}
# Conversations as roles; the last message of the named role is the one in question.
_PROBES = (
    ("user", ("user",)),
    ("system", ("system", "user")),
    ("assistant", ("user", "assistant", "user")),
    ("tool", ("user", "call", "tool")),
)
_LIKE = {"developer": "system", "model": "assistant"}
_LIKE |= dict.fromkeys(("function", "ipython", "observation", "tool_results"), "tool")


class ContentForms:
    """The forms that one template takes, found out once.

    Args:
        render: gives the answer of ``TemplateProcess.render`` for messages.
    """

    def __init__(self, render: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, str]]) -> None:
        self._taken: dict[str, list[str]] = {}
        for role, conversation in _PROBES:
            self._taken[role] = [
                form for form in (TEXT, PART, PARTS) if self._takes(render, role, conversation, form)
            ]

    def fit(self, role: str, content: Content) -> Content:
        """The content in a form that the template takes, which is the given one if possible.

        Args:
            role: the message's role.
            content: a text, or parts with ``type`` "text" and ``text``.
        """
        taken = self._taken.get(_LIKE.get(role, role)) or self._taken["user"]
        if isinstance(content, str):
            return content if TEXT in taken or not taken else as_part(content)
        if PARTS in taken or (PART in taken and len(content) == 1):
            return content
        text = "\n".join(part["text"] for part in content)
        return text if TEXT in taken or not taken else as_part(text)

    def _takes(
        self,
        render: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, str]],
        role: str,
        conversation: Sequence[str],
        form: str,
    ) -> bool:
        words = ["qxoneqx", "qxtwoqx"] if form == PARTS else ["qxoneqx"]
        probe: Content = [{"type": "text", "text": word, _KEY: _KEY} for word in words]
        messages: list[dict[str, Any]] = []
        for other in conversation:
            if other == "call":
                messages.append({"role": "assistant", "tool_calls": [_CALL]})
            elif other == role:
                messages.append({"role": other, "content": words[0] if form == TEXT else probe})
            else:
                messages.append({"role": other, "content": self.fit(other, "qxotherqx")})
        text = render(messages).get("text", "").casefold()
        return all(word in text for word in words) and _KEY not in text


def as_part(text: str) -> list[dict[str, Any]]:
    """A text as a list of one part."""
    return [{"type": "text", "text": text}]
