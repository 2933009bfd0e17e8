"""Targets and ignore rules of compressed-tensors: which group of the config a module belongs to.

A rule is a module's full name, a class name (``Linear``), or ``re:`` and a regular expression
matched at the start of the name. Ignore rules win. When a module matches rules of several groups,
a full name comes before an expression and that before a class, as in the library itself;
expressions are taken in the order of their text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from halfbyte.errors import CheckpointError

from ...files.fields import shown
from ...files.name_patterns import Patterns

MAX_RULES = 1 << 14
MAX_EXPRESSIONS = 256
_PREFIX = "re:"


class Rules:
    """Rules, each with the group that it leads to.

    Args:
        where: file and key, for messages.
        rules: rule -> name of its group; the later one counts where a rule is listed twice.

    Raises:
        CheckpointError: too many rules, or a bad expression.
    """

    def __init__(self, where: str, rules: Mapping[str, str]) -> None:
        self._groups = dict(rules)
        expressions = sorted(rule for rule in rules if rule.startswith(_PREFIX))
        if len(rules) > MAX_RULES or len(expressions) > MAX_EXPRESSIONS:
            raise CheckpointError(
                f"{where}: {len(rules)} rules, {len(expressions)} of them expressions; expected at "
                f"most {MAX_RULES} and {MAX_EXPRESSIONS}"
            )
        self._expressions = expressions
        self._patterns = Patterns(where, [rule.removeprefix(_PREFIX) for rule in expressions])

    def rule_for(self, module: str, classes: Iterable[str]) -> str | None:
        """The most specific rule that the module matches, or None.

        Args:
            module: full name.
            classes: names of its class and of the classes above it.

        Raises:
            CheckpointError: the expressions take too long on the names of this model.
        """
        if module in self._groups:
            return module
        found = self._patterns.first(module)
        if found is not None:
            return self._expressions[found]
        return next((name for name in classes if name in self._groups), None)

    def group_for(self, module: str, classes: Iterable[str]) -> str | None:
        """Name of the group that the module belongs to, or None."""
        rule = self.rule_for(module, classes)
        return None if rule is None else self._groups[rule]


def classes_of(module: str) -> tuple[str, ...]:
    """Names of a module's class and of those above it, by its place in the model."""
    return ("Embedding" if module.endswith("embed_tokens") else "Linear", "Module")


def texts(where: str, value: Any) -> list[str]:
    """A list of rules out of a config; null is an empty one.

    Raises CheckpointError when it is anything else, naming ``where``.
    """
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CheckpointError(f"{where} is {shown(value)}; expected a list of strings")
    return value
