"""The types of sampling fields, and their checks; :mod:`halfbyte.engine.params` has the fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from halfbyte.errors import RequestError

MAX_STOP_STRINGS = 64
MAX_STOP_LENGTH = 1024
MAX_IDS = 1024
MAX_ALLOWED = 1 << 18
MAX_BIASES = 1024
MAX_TOP_LOGPROBS = 20
MAX_CHOICES = 128
MAX_PROCESSORS = 16

INT31 = (1 << 31) - 1
INT63 = (1 << 63) - 1

ParamKind = Literal["number", "whole", "switch", "texts", "ids", "biases", "name", "object"]


@dataclass(frozen=True, slots=True)
class Param:
    """One field of the table.

    Attributes:
        kind: type of its value.
        meaning: what it does, for documents.
        low: least value, or of each entry.
        high: largest value, or of each entry: what float32 arithmetic on logits bears.
        most: most entries of a list.
        optional: None is allowed.
        names: values of a ``name``.
        flags: options on the command line; none: it cannot be given there.
        short: help of the option; ``meaning`` where empty.
        usual: whether most people know it: the help shows the others apart.
        cli_default: what the command line takes when the option is not given, if that is not the
            library's default.
        http: whether a request body has it under this name and with this type.
        check: for an ``object``: what is wrong with a value, or None.
    """

    kind: ParamKind
    meaning: str
    low: float = 0
    high: float = 0
    most: int = 0
    optional: bool = False
    names: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    short: str = ""
    usual: bool = False
    cli_default: Any = None
    http: bool = True
    check: Callable[[Any], str | None] | None = None

    @property
    def range(self) -> str:
        """The values that are allowed, in words."""
        none = "none, or " if self.optional else ""
        match self.kind:
            case "number":
                return f"{none}a number in [{self.low:g}, {self.high:g}]"
            case "whole":
                return f"{none}a whole number from {self.low} to {self.high}"
            case "switch":
                return "True or False"
            case "texts":
                return f"at most {self.most} strings of 1 to {MAX_STOP_LENGTH} characters"
            case "ids":
                return f"{none}at most {self.most} token ids"
            case "biases":
                numbers = f"a number in [{self.low:g}, {self.high:g}]"
                return f"at most {self.most} token ids, each with {numbers}"
            case "name":
                return " or ".join(repr(name) for name in self.names)
            case "object":
                return f"{none}an object of the library"


def number_field(default: float, low: float, high: float, meaning: str, **more: Any) -> Any:
    """A field with a number in a range."""
    return entry_field(default, Param("number", meaning, low, high, **more))


def whole_field(default: int | None, low: int, high: int, meaning: str, **more: Any) -> Any:
    """A field with a whole number in a range; one without a default may be None."""
    more.setdefault("optional", default is None)
    return entry_field(default, Param("whole", meaning, low, high, **more))


def switch_field(meaning: str, default: bool = False, **more: Any) -> Any:
    """A field that is on or off."""
    return entry_field(default, Param("switch", meaning, **more))


def texts_field(default: tuple[str, ...], most: int, meaning: str, **more: Any) -> Any:
    """A field with a list of strings."""
    return entry_field(default, Param("texts", meaning, most=most, **more))


def ids_field(default: tuple[int, ...] | None, most: int, meaning: str, **more: Any) -> Any:
    """A field with a list of token ids; one without a default may be None."""
    param = Param("ids", meaning, 0, INT31, most=most, optional=default is None, **more)
    return entry_field(default, param)


class TokenBiases(Mapping[int, float]):
    """Numbers for token ids, in the order of the ids. It cannot be changed, and has a hash.

    Args:
        values: the numbers.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[int, float]) -> None:
        self._values = dict(sorted(values.items()))

    def __getitem__(self, token: int) -> float:
        return self._values[token]

    def __iter__(self) -> Iterator[int]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)


def biases_field(low: float, high: float, meaning: str, **more: Any) -> Any:
    """A field with numbers for token ids."""
    param = Param("biases", meaning, low, high, most=MAX_BIASES, **more)
    return entry_field(TokenBiases({}), param)


def object_field(default: Any, meaning: str, check: Callable[[Any], str | None]) -> Any:
    """A field of the library alone; ``check`` gives what was expected of a wrong value."""
    optional = default is None
    return entry_field(
        default, Param("object", meaning, optional=optional, http=False, check=check)
    )


def entry_field(default: Any, param: Param) -> Any:
    """A dataclass field with its line of the table."""
    return field(default=default, metadata={"param": param})


def checked(name: str, param: Param, value: Any) -> Any:
    """A value as the field keeps it: lists become tuples. Raises RequestError."""
    if value is None and param.optional:
        return None
    match param.kind:
        case "number" | "whole":
            _check_number(name, param, value)
        case "switch" if not isinstance(value, bool):
            raise _refusal(name, value, param.range)
        case "name" if value not in param.names:
            raise _refusal(name, value, param.range)
        case "texts":
            return _checked_texts(name, param, value)
        case "ids":
            items = _items(name, param, value)
            if not all(type(item) is int and param.low <= item <= param.high for item in items):
                for item in items:
                    _check_number(name, param, item, whole=True)
            return items
        case "biases":
            return _checked_biases(name, param, value)
        case "object" if param.check is not None:
            wanted = param.check(value)
            if wanted is not None:
                raise _refusal(name, value, wanted)
            return tuple(value) if isinstance(value, list) else value
    return value


def _checked_texts(name: str, param: Param, value: Any) -> tuple[str, ...]:
    items = _items(name, param, (value,) if isinstance(value, str) else value)
    for text in items:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_LENGTH:
            raise RequestError(
                f"{name} holds {text!r:.60}; expected strings of 1 to {MAX_STOP_LENGTH} characters",
                param=name,
            )
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise RequestError(
                f"{name} holds {text!r:.60}, which is not valid Unicode: a lone surrogate",
                param=name,
            )
    return items


def _checked_biases(name: str, param: Param, value: Any) -> Mapping[int, float]:
    if not isinstance(value, Mapping):
        raise _refusal(name, value, "a mapping of token ids to numbers")
    if len(value) > param.most:
        raise _too_many(name, len(value), param)
    out: dict[int, float] = {}
    for key, bias in value.items():
        # JSON has no other keys than texts.
        # Python refuses to read thousands of digits; no id has twenty.
        digits = isinstance(key, str) and len(key) < 20 and key.isascii() and key.isdecimal()
        token = int(key) if digits else key
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token <= INT31:
            raise RequestError(
                f"{name} has the key {key!r:.60}; expected a token id from 0 to {INT31}", param=name
            )
        _check_number(name, param, bias, whole=False)
        out[token] = float(bias)
    return TokenBiases(out)


def _items(name: str, param: Param, value: object) -> tuple[Any, ...]:
    """A list or tuple as a tuple; refuse anything else, and too many."""
    if not isinstance(value, (list, tuple)):
        raise _refusal(name, value, "a list")
    if len(value) > param.most:
        raise _too_many(name, len(value), param)
    return tuple(value)


def _check_number(name: str, param: Param, value: object, whole: bool | None = None) -> None:
    """Refuse what is not a number in the range; booleans are not numbers here."""
    whole = param.kind == "whole" if whole is None else whole
    kinds = (int,) if whole else (int, float)
    good = not isinstance(value, bool) and isinstance(value, kinds)
    if not good or not param.low <= value <= param.high:  # type: ignore[operator]
        low, high = param.low, param.high
        wanted = (
            f"a whole number from {low} to {high}" if whole else f"a number in [{low:g}, {high:g}]"
        )
        raise _refusal(name, value, wanted)


def _refusal(name: str, value: object, wanted: str) -> RequestError:
    return RequestError(f"{name} is {_shown(value)}; expected {wanted}", param=name)


def _too_many(name: str, found: int, param: Param) -> RequestError:
    return RequestError(f"{name} has {found} entries; at most {param.most} are allowed", param=name)


def _shown(value: object) -> str:
    """A value for an error; Python refuses to write out integers of more than 4300 digits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a whole number of {value.bit_length()} bits"
    return f"{value!r:.60}"


def not_a_grammar(value: Any) -> str | None:
    """What is expected in place of a value that is no grammar."""
    from .grammar.base import GrammarSpec

    return None if isinstance(value, GrammarSpec) else "a GrammarSpec"


def not_a_limit(value: Any) -> str | None:
    """What is expected in place of a value that is no limit of reasoning."""
    from .grammar.limit import ReasoningLimit

    return None if isinstance(value, ReasoningLimit) else "a ReasoningLimit"


def not_processors(value: Any) -> str | None:
    """What is expected in place of a value that is no list of processors."""
    good = isinstance(value, (list, tuple)) and all(callable(item) for item in value)
    if good and len(value) <= MAX_PROCESSORS:
        return None
    return f"a list of at most {MAX_PROCESSORS} callables"
