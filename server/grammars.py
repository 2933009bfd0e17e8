"""Which grammar a request's fields ask for: OpenAI's, vLLM's newer and older names."""

from __future__ import annotations

from typing import Any, Protocol

from halfbyte.errors import RequestError

from ..engine.grammar.base import GrammarSpec


class GrammarFields(Protocol):
    """The fields of a request that may ask for one; see ``schema.py``."""

    response_format: Any
    structured_outputs: Any
    guided_json: dict[str, Any] | str | None
    guided_regex: str | None
    guided_choice: list[str] | None
    guided_grammar: str | None


def wanted_grammar(request: GrammarFields) -> GrammarSpec | None:
    """The grammar that a request asks for, or None.

    Raises:
        RequestError: more than one is asked for, or one is malformed; names the field.
    """
    found = _of_format(request) | _of_structured(request) | _of_guided(request)
    if len(found) > 1:
        first, second, *_ = found
        raise RequestError(f"{second} is given beside {first}: give one of them", param=second)
    return next(iter(found.values()), None)


def _of_format(request: GrammarFields) -> dict[str, GrammarSpec]:
    given = request.response_format
    if given is None or given.type == "text":
        return {}
    if given.type == "json_object":
        return {"response_format": GrammarSpec.json_object(param="response_format")}
    param = "response_format.json_schema.schema"
    if given.json_schema is None or given.json_schema.schema_ is None:
        raise RequestError(f"{param} is missing", param=param, code="missing_required_parameter")
    return {"response_format": GrammarSpec.json_schema(given.json_schema.schema_, param=param)}


def _of_structured(request: GrammarFields) -> dict[str, GrammarSpec]:
    given = request.structured_outputs
    if given is None:
        return {}
    fields = {
        "json": given.json_,
        "regex": given.regex,
        "choice": given.choice,
        "grammar": given.grammar,
        "json_object": given.json_object or None,
    }
    return {
        f"structured_outputs.{name}": _spec(name, value, f"structured_outputs.{name}")
        for name, value in fields.items()
        if value is not None
    }


def _of_guided(request: GrammarFields) -> dict[str, GrammarSpec]:
    names = ("json", "regex", "choice", "grammar")
    given = {name: getattr(request, f"guided_{name}") for name in names}
    return {
        f"guided_{name}": _spec(name, value, f"guided_{name}")
        for name, value in given.items()
        if value is not None
    }


def _spec(name: str, value: Any, param: str) -> GrammarSpec:
    match name:
        case "json":
            return GrammarSpec.json_schema(value, param=param)
        case "json_object":
            return GrammarSpec.json_object(param=param)
        case "regex":
            return GrammarSpec.regex(value, param=param)
        case "choice":
            return GrammarSpec.choice(value, param=param)
    return GrammarSpec.either(value, param=param)
