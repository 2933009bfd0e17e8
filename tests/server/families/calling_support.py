"""An engine whose answers think, say something, and call a function twice."""

from __future__ import annotations

from fake_engine import FakeEngine

ARGUMENTS = '{"city": "Köln"}'
CALL = f'<tool_call>\n{{"name": "f", "arguments": {ARGUMENTS}}}\n</tool_call>'


def calling_engine(template: str) -> FakeEngine:
    """The engine, with a chat template that says what is looked for in its answers."""
    made = FakeEngine(max_context=4096)
    made.tokenizer.template = template
    made.script = f"<think>so ü</think>Let me see.{CALL}\n{CALL}"
    return made
