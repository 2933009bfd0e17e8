"""The stream of an answer and of its HTML."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine

from halfbyte.server.page import renderer

pytestmark = pytest.mark.anyio

ASKED = {
    "messages": [{"role": "user", "content": "q"}],
    "stream": True,
    "temperature": 0,
    "stream_options": {"include_usage": True},
}
HEAD = "# Head\n\nSome *text* 🙂 漢.\n\n```python\nx = 1\n```\n\n"
ANSWER = HEAD + "- item\n" * 20 + "\nlast [a]\n"
LATE = "first [a]\n\n" + ANSWER + "\n[a]: https://x.y\n"


@pytest.fixture
def engine() -> FakeEngine:
    made = FakeEngine(max_context=4096)
    made.step_s = 0.002
    return made


async def events(http: httpx.AsyncClient, **more: Any) -> list[Any]:
    response = await http.post("/page/chat", json=ASKED | more)
    assert response.status_code == 200, response.text
    lines = [line for line in response.text.split("\n\n") if line]
    return [line if "[DONE]" in line else json.loads(line.removeprefix("data: ")) for line in lines]


def is_html(event: Any) -> bool:
    return isinstance(event, dict) and event.get("object") == "halfbyte.html"


@pytest.mark.parametrize("answer", [ANSWER, LATE])
async def test_html_ends_as_the_whole_text_would(
    page_http: httpx.AsyncClient, engine: FakeEngine, answer: str
) -> None:
    engine.script = answer
    found = await events(page_http, max_tokens=2000)
    assert found[-1] == "data: [DONE]" and is_html(found[-2])
    text = "".join(
        choice["delta"].get("content", "") for e in found[:-1] for choice in e.get("choices", ())
    )
    assert text == answer
    (html,) = (await page_http.post("/page/render", json={"texts": [answer]})).json()["html"]
    shown: list[str] = []
    lengths = []
    for event in filter(is_html, found):
        shown = [*event["blocks"]] if event["replace"] else shown + event["blocks"]
        lengths.append(event["length"])
    before = any(event["blocks"] for event in found[:-2] if is_html(event))
    assert "\n".join(shown) == html
    assert lengths == sorted(lengths) and lengths[-1] == len(answer.encode("utf-16-le")) // 2
    # What only the last line makes a link is no link before.
    assert found[-2]["replace"] == (answer == LATE and before)


async def test_finished_blocks_are_sent_once(
    page_http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script = "".join(f"paragraph {n} of them\n\n" for n in range(20))
    found = [event for event in await events(page_http, max_tokens=2000) if is_html(event)]
    blocks = [block for event in found for block in event["blocks"]]
    assert len("".join(blocks).split("<p>")) - 1 == 20
    assert all(event["open"].count("<p>") <= 1 for event in found)


async def test_versions_keep_their_distance(
    page_http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """At most 10 versions a second, however fast tokens come, and the last one."""
    engine.script, engine.step_s = "word " * 60, 0.005
    found = await events(page_http, max_tokens=1000)
    versions = [event for event in found if is_html(event)]
    assert 2 <= len(versions) <= 300 * 0.005 * 10 * 3 + 2  # a machine three times as slow


async def test_chunks_are_those_of_the_api(
    page_http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script = "a *b*"
    plain = await page_http.post("/v1/chat/completions", json=ASKED)
    wanted = [json.loads(x[6:]) for x in plain.text.split("\n\n") if x and "[DONE]" not in x]
    found = [e for e in (await events(page_http))[:-1] if not is_html(e)]
    for one in (*wanted, *found):
        del one["id"], one["created"]
    assert "".join(map(_text, found)) == "".join(map(_text, wanted)) == "a *b*"
    assert found[-1] == wanted[-1] and found[0] == wanted[0]


async def test_an_answer_that_goes_on_is_shown_as_a_whole(
    page_http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script = "c* d"
    begun = [*ASKED["messages"], {"role": "assistant", "content": "a *b "}]
    more = {"continue_final_message": True, "add_generation_prompt": False}
    found = await events(page_http, messages=begun, **more)
    assert "".join(_text(e) for e in found[:-1] if not is_html(e)) == "c* d"
    assert (found[-2]["blocks"], found[-2]["length"]) == (["<p>a <em>b c</em> d</p>\n"], 9)


async def test_begins_with_what_the_command_line_does(
    page_http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await events(page_http, temperature=None, max_tokens=1)
    await events(page_http, temperature=1.5, top_k=0, max_tokens=1)
    first, second = engine.asked
    assert (first.temperature, first.top_k, first.top_p, first.min_p) == (0.8, 40, 0.95, 0.05)
    assert (second.temperature, second.top_k, second.top_p) == (1.5, 0, 0.95)


def _text(event: Any) -> str:
    return "".join(choice["delta"].get("content", "") for choice in event["choices"])


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"stream": False, "stream_options": None}, "stream"),
        ({"n": 2}, "n"),
        ({"top_k": -5}, "top_k"),
    ],
)
async def test_refused(page_http: httpx.AsyncClient, more: dict[str, Any], param: str) -> None:
    response = await page_http.post("/page/chat", json=ASKED | more)
    assert response.status_code == 400 and response.json()["error"]["param"] == param


async def test_without_a_renderer_the_text_still_comes(
    page_http: httpx.AsyncClient,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(renderer, "_PACKAGES", ("no_such_package",))
    engine.script = "a *b*"
    found = await events(page_http)
    assert not any(map(is_html, found)) and found[-1] == "data: [DONE]"
    assert "".join(_text(e) for e in found[:-1]) == "a *b*"


async def test_failure_is_told_with_what_came(
    page_http: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.script = "some *text* that goes on"
    step = engine.step

    def failing() -> Any:
        if engine.tally.steps == 13:
            engine.failures.append(RuntimeError("a fault"))
        return step()

    monkeypatch.setattr(engine, "step", failing)
    found = await events(page_http)
    (failure,) = [event for event in found[:-1] if "error" in event]
    assert failure["error"]["code"]
    assert found[-2]["blocks"] == ["<p>some <em>text</em> t</p>\n"]
