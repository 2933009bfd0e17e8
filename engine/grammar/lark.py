"""Grammars in llguidance's variant of Lark: what of them can be honoured."""

from __future__ import annotations

import json
import re
from typing import Any

from halfbyte.errors import CheckpointError, RequestError

from ...loaders.files.json_text import parse_object
from .json_schema import check_schema, with_options

_PIECE = re.compile(
    r"""(?P<comment>(?://|\#)[^\n]*)
    | (?P<quoted>"(?:[^"\\\n]|\\.)*" | /(?:[^/\\\n]|\\.)+/)
    | (?P<json>%json\s*)(?=\{)
    | (?P<head>^[?!]?[A-Za-z_][\w-]*\s*\[)""",
    re.VERBOSE | re.MULTILINE,
)
_DECODER = json.JSONDecoder()
# Attributes of rules that change which tokens may follow. The others would need another sampler,
# or give back parts of the text.
_ATTRIBUTES = {"lazy", "suffix", "max_tokens"}


def lark_grammar(source: str, param: str) -> dict[str, Any]:
    """The grammar of a Lark source in llguidance's format.

    Args:
        source: the rules.
        param: the field that an error names.

    Raises:
        RequestError: an attribute of a rule, or a keyword of a schema within, that cannot be
            honoured; says where.
    """
    out: list[str] = []
    start = 0
    while piece := _PIECE.search(source, start):
        out.append(source[start : piece.end()])
        start = piece.end()
        line = source.count("\n", 0, start) + 1
        if piece["head"]:
            _check_attributes(source, start, line, param)
        elif piece["json"]:
            schema, start = _schema(source, start, line, param)
            out.append(json.dumps(with_options(schema)))
    out.append(source[start:])
    return {"lark_grammar": "".join(out)}


def _check_attributes(source: str, start: int, line: int, param: str) -> None:
    """Those of a rule whose bracket opens before ``start``."""
    end = source.find("\n", start)
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', source[start : end if end >= 0 else None])
    listed, bracket, rest = text.partition("]")
    if not bracket or not rest.lstrip().startswith(":"):
        return  # llguidance will say what is wrong
    for attribute in listed.split(","):
        name = attribute.partition("=")[0].strip()
        if name and name not in _ATTRIBUTES:
            known = ", ".join(sorted(_ATTRIBUTES))
            raise RequestError(
                f"{param}: the attribute {name!r:.40} in line {line} cannot be honoured; "
                f"expected {known}",
                param=param,
                code="invalid_grammar",
            )


def _schema(source: str, start: int, line: int, param: str) -> tuple[dict[str, Any], int]:
    """The schema that begins at ``start``, and where it ends."""
    try:
        _, end = _DECODER.raw_decode(source, start)
        where = f"{param}: the schema in line {line}"
        schema = parse_object(source[start:end].encode(), where, max_bytes=len(source) * 4)
    except CheckpointError as error:
        raise RequestError(error.message, param=param, code="invalid_grammar") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"{param}: the schema in line {line} is no JSON: {str(error)[:120]}",
            param=param,
            code="invalid_grammar",
        ) from error
    check_schema(schema, param, where)
    return schema, end
