"""One answer as pieces, without those that the client does not want."""

from __future__ import annotations

from .pieces import AnswerPiece, ReasoningPiece
from .plan import AnswerPlan


class AnswerReader:
    """Reads the text of one answer.

    Args:
        plan: what is looked for in it.
    """

    def __init__(self, plan: AnswerPlan) -> None:
        self._parser = plan.parser()
        self._reasoning_shown = plan.reasoning_shown

    @property
    def called(self) -> int:
        """Calls that have begun."""
        return self._parser.called

    def pieces(self, text: str, *, last: bool) -> list[AnswerPiece]:
        """What is certain after more text, reasoning only where it is shown.

        Args:
            text: what came; may be empty.
            last: nothing will follow.
        """
        found = self._parser.feed(text) + (self._parser.finish() if last else [])
        if self._reasoning_shown:
            return found
        return [piece for piece in found if not isinstance(piece, ReasoningPiece)]
