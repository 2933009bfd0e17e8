"""From the blocks of Anthropic's messages to the messages of a chat completion."""

from __future__ import annotations

from collections.abc import Sequence

from halfbyte.errors import RequestError

from ..content import text_part, text_parts
from .conversation import ChatTurns, TurnContent, needed
from .message_fields import MessageBlock, MessageTurn

_FAILED = "Error: "


def system_content(given: str | Sequence[MessageBlock]) -> TurnContent:
    """The content of the system's message. Raises RequestError for a block that is no text."""
    return given if isinstance(given, str) else text_parts(given, "system")


def add_turn(turns: ChatTurns, turn: MessageTurn, where: str) -> None:
    """Add one message's blocks to a conversation, in their order.

    Args:
        turns: what stands before.
        turn: the message.
        where: the place of its content in the body, for errors.

    Raises:
        RequestError: a block that messages of this role do not have, or that lacks something.
    """
    if isinstance(turn.content, str):
        turns.join(turn.role, turn.content)
        return
    if not turn.content:
        turns.join(turn.role, [])
    for number, block in enumerate(turn.content):
        _add_block(turns, turn.role, block, f"{where}.{number}")


def _add_block(turns: ChatTurns, role: str, block: MessageBlock, where: str) -> None:
    match role, block.type:
        case "assistant", "thinking":
            # Without text the thought was left out of the answer.
            if text := needed(block.thinking, where, "thinking"):
                turns.think(text)
        case "assistant", "tool_use":
            name, given = needed(block.name, where, "name"), needed(block.input, where, "input")
            turns.call(needed(block.id, where, "id"), name, given)
        case "user", "tool_result":
            id = needed(block.tool_use_id, where, "tool_use_id")
            turns.add("tool", _result(block, where), tool_call_id=id)
        case _, "thinking" | "tool_use" | "tool_result":
            raise RequestError(
                f"{where} has type {block.type!r}, which messages with the role {role!r} do not "
                "have",
                param=f"{where}.type",
            )
        case _:
            turns.join(role, [text_part(block, where)])


def _result(block: MessageBlock, where: str) -> TurnContent:
    """What a call gave; that it failed has no field in a chat template and is written there."""
    given = block.content or ""
    if isinstance(given, str):
        return _FAILED + given if block.is_error else given
    failed = [{"type": "text", "text": _FAILED.strip()}] if block.is_error else []
    return failed + text_parts(given, f"{where}.content")
