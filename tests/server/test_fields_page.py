"""The page of fields is made from the schemas, and says of refusals what requests meet."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from halfbyte.errors import RequestError
from halfbyte.server.endpoints import ENDPOINTS, FAMILY_ENDPOINTS, Endpoint
from halfbyte.server.fields_page import fields_page
from halfbyte.server.schema import parse

PAGE = Path(__file__).parents[2] / "docs" / "api-fields.md"
EVERY = {**ENDPOINTS, **FAMILY_ENDPOINTS}
# A value for each field that some body requires.
REQUIRED: dict[str, Any] = {
    "prompt": "x",
    "input": "x",
    "tokens": [1],
    "content": "x",
    "model": "m",
    "messages": [{"role": "user", "content": "x"}],
    "max_tokens": 5,
    "text_1": "x",
    "text_2": "x",
    "input_prefix": "x",
    "input_suffix": "x",
    "query": "x",
    "documents": ["x"],
}


def test_the_page_is_what_the_schemas_give() -> None:
    remedy = "python -m halfbyte.server.fields_page > docs/api-fields.md"
    assert PAGE.read_text(encoding="utf-8") == fields_page(), f"it is stale: {remedy}"


def test_every_path_and_object_has_a_section() -> None:
    page = fields_page()
    for path in (*EVERY, "/v1/batches"):
        assert f"`POST {path}`" in page
    links = set(re.findall(r"\]\(#(\w+)\)", page))
    assert links == {name.lower() for name in re.findall(r"^### (\w+)$", page, re.MULTILINE)}


@pytest.mark.parametrize("path", EVERY)
def test_what_the_page_calls_refused_is_refused(path: str) -> None:
    check_refusals(path, EVERY[path])


def check_refusals(path: str, endpoint: Endpoint) -> None:
    fields = endpoint.asks.model_json_schema()
    least = {name: REQUIRED[name] for name in fields.get("required", ())}
    for name, harmless in endpoint.asks.not_honoured.items():
        assert name not in endpoint.asks.model_fields, "fields are honoured"
        for value in (["qx"], "qx", {"qx": 1}):
            body = json.dumps({**REQUIRED_BESIDES.get(path, {}), **least, name: value})
            with pytest.raises(RequestError) as caught:
                parse(endpoint.asks, body.encode())
            assert caught.value.code == "unsupported_value", (name, value)
            assert (caught.value.param or "").endswith(name)
        for value in harmless:
            body = json.dumps({**REQUIRED_BESIDES.get(path, {}), **least, name: value})
            parse(endpoint.asks, body.encode())


# What a body needs beside what its schema calls required: one of two fields.
REQUIRED_BESIDES: dict[str, dict[str, Any]] = {"/tokenize": {"prompt": "x"}}
