"""Lines of batches: how they are read, told apart, refused and written."""

from __future__ import annotations

import json
import random
from io import BytesIO

import pytest
from batch_support import MODEL, lines_of, request, text_of

from halfbyte.errors import RequestError
from halfbyte.server.batch import lines as module
from halfbyte.server.batch.lines import (
    answered_status,
    custom_id_of,
    model_key,
    output_beginning,
    output_line,
    read_lines,
    read_request,
)
from halfbyte.server.endpoints import ENDPOINTS
from halfbyte.server.errors import ApiError
from halfbyte.server.schema import CompletionRequest


def test_blank_lines_ends_and_marks_do_not_count():
    data = b"\xef\xbb\xbf{1}\r\n\n  \t\n {2} \n{3}"
    found = lines_of(data)
    assert [(x.index, x.data) for x in found] == [(0, b"{1}"), (1, b"{2}"), (2, b"{3}")]
    plain = lines_of(b"{1}\n{2}\n{3}\n")
    assert [x.key for x in found] == [x.key for x in plain]
    assert found[-1].end == len(data)


def test_reading_goes_on_at_any_line():
    data = b"\n".join(b"x" * random.randrange(4) for _ in range(40))
    every = lines_of(data)
    for line in every:
        rest = list(read_lines(BytesIO(data), line.end, line.index + 1))
        assert rest == every[line.index + 1 :]


def test_a_key_is_of_the_number_and_the_text():
    keys = [x.key for x in lines_of(b"a\na\nb\n")]
    assert len({*keys}) == 3 and keys[0] == lines_of(b"a\nb\n")[0].key
    assert all(len(key) == module.LINE_KEY_DIGITS for key in keys)
    assert model_key("a", 1) != model_key("a", 2) and len(model_key("a")) == len(MODEL)


def test_a_line_that_is_too_long_is_not_held(monkeypatch):
    monkeypatch.setattr(module, "MOST_LINE_BYTES", 10)
    cases = {9: True, 10: True, 11: False, 12: False, 40: False}
    for length, fits in cases.items():
        for end in (b"\n", b""):
            first, *others = lines_of(b"y" * length + end + (b"z\n" if end else b""))
            assert (first.data is not None) == fits
            assert [x.data for x in others] == ([b"z"] if end else [])
            assert first.end == length + len(end)


@pytest.mark.parametrize(
    ("line", "status", "param", "says"),
    [
        ("nothing", 400, None, "not usable"),
        ("[1]", 400, None, "not usable: expected a JSON object"),
        ('{"custom_id": "a\ud800"}', 400, None, "not usable"),
        ({**request("a"), "custom_id": 3}, 400, "custom_id", "string"),
        ({**request("a"), "custom_id": ""}, 400, "custom_id", "1 character"),
        ({**request("a", prompt="x"), "method": "GET"}, 400, "method", "POST"),
        ({"custom_id": "a", "method": "POST", "url": "/v1/completions"}, 400, "body", "required"),
        ({**request("a"), "body": "x"}, 400, "body", "object"),
        (request("a", "/v1/nothing"), 400, "url", "no POST /v1/nothing here; url may be /v1/"),
        (request("a", "/v1/models"), 400, "url", "no POST /v1/models"),
        (request("a"), 400, "prompt", "prompt: Field required"),
        (request("a", prompt="x", temperature=True), 400, "temperature", "valid number"),
        (request("a", prompt="x", seed=1 << 70), 400, "seed", "less than"),
        (request("a", prompt="x", lora_path="x"), 400, "lora_path", "does not support"),
        (request("a", prompt="x", stream=True), 400, "stream", "not streamed"),
        (request("a", "/v1/chat/completions", messages=[]), 400, "messages", "at least 1"),
    ],
)
def test_bad_lines_get_the_servers_errors(line, status, param, says):
    text = line if isinstance(line, str) else json.dumps(line)
    (found,) = lines_of(text.encode("utf-8", "surrogatepass"))
    with pytest.raises((ApiError, RequestError), match=says) as caught:
        read_request(found)
    assert getattr(caught.value, "status", 400) == status
    assert caught.value.param == param


def test_numbers_stay_what_they_are():
    body = {"prompt": [1, 2147483647], "temperature": 0.1, "seed": -(1 << 63), "stop": ["\u2028é"]}
    (line,) = lines_of(text_of([request("a", **body, n=None)]))
    endpoint, asked = read_request(line)
    assert endpoint is ENDPOINTS["/v1/completions"] and isinstance(asked, CompletionRequest)
    assert {name: getattr(asked, name) for name in body} == body
    huge = '{"custom_id":"a","method":"POST","url":"/v1/completions","body":{"prompt":"x",%s}}'
    for field in ('"temperature":1e999', '"top_p":NaN'):
        with pytest.raises(RequestError):
            read_request(lines_of((huge % field).encode())[0])


def test_an_output_line_is_openais_and_says_what_it_answers():
    (line,) = lines_of(text_of([request("é\n", prompt="x")]))
    out = output_line(MODEL, line, custom_id_of(line.data), 404, b'{"error":{"code":"x"}}')
    assert out.startswith(output_beginning(MODEL, line)) and out.count(b"\n") == 1
    assert json.loads(out) == {
        "id": f"batch_req_{MODEL}{line.key}",
        "custom_id": "é\n",
        "response": {
            "status_code": 404,
            "request_id": line.key,
            "body": {"error": {"code": "x"}},
        },
        "error": None,
    }
    assert answered_status(out) == 404
    for cut in (out[:-9], b"", b"[]", b'{"response":1}', out.replace(b"404", b'"4"')):
        assert answered_status(cut) is None


def test_names_of_any_line():
    found = [custom_id_of(x) for x in (b'{"custom_id":"a"}', b'{"custom_id":1}', b"[]", b"", None)]
    assert found == ["a", None, None, None, None]
