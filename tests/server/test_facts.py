"""What may be GET of the model, and the template's text, over a fake engine."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine

import halfbyte
from halfbyte.server.endpoints import ENDPOINTS, FACTS, FAMILY_ENDPOINTS

pytestmark = pytest.mark.anyio

SAY = [{"role": "system", "content": "Be."}, {"role": "user", "content": "héllo"}]


async def test_the_tokenizer_is_told_as_lm_eval_reads_it(http: httpx.AsyncClient) -> None:
    got = (await http.get("/tokenizer_info")).json()
    assert got["eos_token"] == "<end>" and got["bos_token"] is None and got["pad_token"] is None
    assert got["chat_template"] == "{{ messages }}"


async def test_props_are_those_of_the_engine(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    got = (await http.get("/props")).json()
    assert got["default_generation_settings"]["n_ctx"] == engine.max_context
    assert got["default_generation_settings"]["params"]["temperature"] == 1.0
    assert got["total_slots"] == engine.config.max_batch
    assert got["modalities"] == {"vision": False, "audio": False}
    assert got["bos_token"] == "" and got["eos_token"] == "<end>"
    assert halfbyte.__version__ in got["build_info"] and got["model_alias"] == engine.name


async def test_slots_are_taken_by_what_runs(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    idle = (await http.get("/slots")).json()
    assert [slot["id"] for slot in idle] == list(range(engine.config.max_batch))
    assert not any(slot["is_processing"] for slot in idle)


async def test_the_template_gives_the_text_that_a_chat_is_made_of(http: httpx.AsyncClient) -> None:
    response = await http.post("/apply-template", json={"messages": SAY})
    assert response.json() == {"prompt": "<turn>system\nBe.<end><turn>user\nhéllo<end><turn>"}
    closed = {"messages": SAY, "add_generation_prompt": False}
    text = (await http.post("/apply-template", json=closed)).json()["prompt"]
    assert text.endswith("<end>")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0"),
        ({"messages": SAY, "chat_template": "{{ 7 * 7 }}"}, "chat_template"),
        ({"messages": SAY, "add_special_tokens": True}, "add_special_tokens"),
        ({"messages": SAY, "chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"messages": SAY, "model": "another"}, "model"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
    ],
)
async def test_what_cannot_be_rendered_is_refused(
    http: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    response = await http.post("/apply-template", json=body)
    assert response.status_code == (404 if param == "model" else 400)
    assert response.json()["error"]["param"].startswith(param)


async def test_every_path_is_in_the_openapi_document(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    for path, endpoint in {**ENDPOINTS, **FAMILY_ENDPOINTS}.items():
        asked = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert asked["schema"]["$ref"].endswith(f"/{endpoint.asks.__name__}")
        assert endpoint.asks.__name__ in document["components"]["schemas"]
    for path in FACTS:
        assert "get" in document["paths"][path]
        assert (await http.get(path)).status_code == 200
