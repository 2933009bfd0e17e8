"""The page's files, their headers, and what it asks the server for."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from fake_engine import FakeEngine
from server_support import Site, client_of

from halfbyte.engine.params import table
from halfbyte.server.page import site
from halfbyte.server.page.site import ChatPage
from halfbyte.server.tenant import Keyring

pytestmark = pytest.mark.anyio
STATIC = Path(site.__file__).with_name("static")


async def test_files(page_http: httpx.AsyncClient, page: ChatPage) -> None:
    assert (
        "/" in page.files and "/page/main.js" in page.files and "/page/lang/en.json" in page.files
    )
    for path, file in page.files.items():
        response = await page_http.get(path)
        assert response.status_code == 200 and response.content == file.body
        assert response.headers["content-type"] == f"{file.media}; charset=utf-8"
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert "require-trusted-types-for 'script'" in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        again = await page_http.get(path, headers={"If-None-Match": file.etag})
        assert again.status_code == 304 and again.content == b""
        assert (await page_http.head(path)).status_code == 200


@pytest.mark.parametrize("path", ["../site.py", "%2e%2e/site.py", "", "a.js", "lang/xx.json"])
async def test_no_other_files(page_http: httpx.AsyncClient, path: str) -> None:
    assert (await page_http.get(f"/page/{path}")).status_code == 404


async def test_no_page(http: httpx.AsyncClient) -> None:
    response = await http.get("/")
    assert response.status_code == 404
    assert "--no-page" in response.json()["error"]["message"]
    assert (await http.get("/page/main.js")).status_code == 404


def test_nothing_is_loaded_from_elsewhere() -> None:
    for path in STATIC.rglob("*"):
        if path.is_file():
            text = path.read_text()
            for mark in ("https://", "http://"):
                rest = text.replace("http://www.w3.org/", "")  # names of namespaces
                assert mark not in rest, path


def test_html_is_set_in_one_place() -> None:
    for path in STATIC.glob("*.js"):
        text = path.read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in text or path.name == "dom.js", (path.name, word)


async def test_fields_are_those_of_the_table(page_http: httpx.AsyncClient) -> None:
    found = (await page_http.get("/page/fields")).json()["fields"]
    fields = {field["name"]: field for field in found}
    assert fields.keys() == {name for name, param in table().items() if param.http}
    assert fields["temperature"]["low"] == 0 and fields["temperature"]["default"] == 0.8
    assert fields["max_tokens"]["default"] is None
    assert fields["top_k"]["kind"] == "whole" and fields["stop"]["default"] == []


async def test_render(page_http: httpx.AsyncClient) -> None:
    texts = ["*a*", "x" * 300_000, "<script>", ""]
    html = (await page_http.post("/page/render", json={"texts": texts})).json()["html"]
    assert html == ["<p><em>a</em></p>\n", None, "<p>&lt;script&gt;</p>\n", ""]
    refused = await page_http.post("/page/render", json={"texts": "a"})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "texts"


async def test_texts_after_slow_ones_are_left_as_they_are(
    page_http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "_RENDER_S", 0.0)
    html = (await page_http.post("/page/render", json={"texts": ["a", "b"]})).json()["html"]
    assert html == [None, None]


async def test_files_are_open_and_the_rest_needs_the_key(page: ChatPage) -> None:
    options = {"page": page, "keyring": Keyring(["secret"])}
    async for client in client_of(Site(FakeEngine(), app_options=options)):
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/page/main.js")).status_code == 200
        for path in ("/page/fields", "/v1/models", "/metrics"):
            assert (await client.get(path)).status_code == 401
        assert (await client.post("/page/render", json={"texts": []})).status_code == 401
        assert (await client.post("/page/chat", json={})).status_code == 401
        head = {"Authorization": "Bearer secret"}
        assert (await client.get("/page/fields", headers=head)).status_code == 200
