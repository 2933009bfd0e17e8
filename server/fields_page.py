"""Makes ``docs/api-fields.md`` from the schemas of the request bodies.

python -m halfbyte.server.fields_page > docs/api-fields.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .endpoints import ENDPOINTS, FAMILY_ENDPOINTS
from .request_model import RequestModel
from .schema import json_schemas
from .uploads.routes import BATCHES_PATH, BatchRequest

_HEAD = """\
# Fields of request bodies

Every field that a body may have, endpoint by endpoint, made from the schemas that requests are
checked with (`server/fields_page.py`). [api.md](api.md) says what they do where that is not what
the API's own documentation says, [parameters.md](parameters.md) what sampling fields do.

- A field may be left out, or be null, unless it is required.
- A wrong type, or a value out of range, is an error with status 400 and the code `invalid_value`;
  a missing field one with `missing_required_parameter`. `param` names the field as the body spells
  it, `messages.0.content` and so on.
- A field under "refused" is known and not honoured. Its code is `unsupported_value`, unless its
  value is one of those that change nothing.
- Fields that are not here are ignored, but for Ollama's `options`, all of whose fields are known
  or refused.
- Anthropic's and Ollama's paths write the same errors in their own form.
"""


def fields_page() -> str:
    """The page's text."""
    bodies: dict[type[RequestModel], list[str]] = {}
    for path, endpoint in {**ENDPOINTS, **FAMILY_ENDPOINTS}.items():
        bodies.setdefault(endpoint.asks, []).append(path)
    bodies[BatchRequest] = [BATCHES_PATH]
    schemas = json_schemas(bodies)
    classes = {kind.__name__: kind for kind in _every(RequestModel)}
    parts = [_HEAD]
    named: dict[str, None] = {}
    for kind, paths in bodies.items():
        where = ", ".join(f"`POST {path}`" for path in paths)
        parts.append(f"\n## {where}\n")
        parts += _section(schemas[kind.__name__], kind, named)
    parts.append("\n## Objects in bodies\n")
    shown: set[str] = set()
    while rest := [name for name in named if name not in shown]:
        for name in rest:
            shown.add(name)
            parts.append(f"\n### {name}\n")
            parts += _section(schemas[name], classes.get(name), named)
    return "\n".join(parts) + "\n"


def _every(kind: type[RequestModel]) -> Iterator[type[RequestModel]]:
    for child in kind.__subclasses__():
        yield child
        yield from _every(child)


def _section(
    schema: Mapping[str, Any], kind: type[RequestModel] | None, named: dict[str, None]
) -> Iterator[str]:
    """The fields of an object, and what is refused in it; names of objects in it are noted."""
    refused = {} if kind is None else kind.not_honoured
    every: Mapping[str, Any] = schema.get("properties", {})
    fields = {name: value for name, value in every.items() if name not in refused}
    if fields:
        yield "| field | values |\n|---|---|"
        required = schema.get("required", ())
        for name, value in fields.items():
            must = "; required" if name in required else ""
            yield f"| `{name}` | {_values(value, named)}{must} |"
    if refused:
        yield "\n| refused | values that change nothing |\n|---|---|"
        for name, values in sorted(refused.items()):
            shown = ", ".join(f"`{json.dumps(v)}`" for v in values if not _same(v, values))
            yield f"| `{name}` | {shown} |"


def _same(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether a number is there as an integer already."""
    return type(value) is float and any(type(v) is int and v == value for v in values)


def _values(schema: Mapping[str, Any], named: dict[str, None]) -> str:
    """What a field may be, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        named[name] = None
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        kinds = [_values(s, named) for s in schema["anyOf"] if s != {"type": "null"}]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(v)}`" for v in schema["enum"])
    match schema.get("type"):
        case "array":
            inner = _values(schema.get("items", {}), named)
            return f"list of ({inner}){_range(schema, 'minItems', 'maxItems', 'entries')}"
        case "string":
            # A stroke would end the cell of the table.
            regex = schema.get("pattern", "").replace("|", "\\|")
            pattern = f" matching `{regex}`" if regex else ""
            return f"text{pattern}{_range(schema, 'minLength', 'maxLength', 'characters')}"
        case "object" if isinstance(schema.get("additionalProperties"), dict):
            inner = _values(schema["additionalProperties"], named)
            limit = _range(schema, "minProperties", "maxProperties", "entries")
            return f"object of ({inner}){limit}"
        case "integer" | "number" as kind:
            return f"{kind}{_range(schema, 'minimum', 'maximum')}"
        case None:
            return "anything"
        case kind:
            return str(kind)


def _range(schema: Mapping[str, Any], low: str, high: str, unit: str = "") -> str:
    least, most = schema.get(low), schema.get(high)
    unit = f" {unit}" if unit else ""
    if least is None and most is None:
        return ""
    if most is None:
        return f", at least {least:g}{unit}"
    if least is None:
        return f", at most {most:g}{unit}" if most < 1e6 else f", at most {most}{unit}"
    top = f"{most:g}" if abs(most) < 1e6 else f"{most}"
    bottom = f"{least:g}" if abs(least) < 1e6 else f"{least}"
    return f", {bottom} to {top}{unit}"


if __name__ == "__main__":
    print(fields_page(), end="")
