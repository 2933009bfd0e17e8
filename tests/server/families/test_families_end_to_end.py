"""Endpoints of other APIs over a real engine with a tiny random model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_support import Site, client_of

from halfbyte.engine.advise.start_plan import plan_start
from halfbyte.engine.engine import Engine
from halfbyte.engine.text.tokenizer import Tokenizer
from halfbyte.loaders import open_checkpoint
from halfbyte.server.hosting.offer import served_model

pytestmark = pytest.mark.anyio

TINY = Path(__file__).parents[2] / "fixtures" / "gguf-q4_0-spm-llama" / "model.gguf"
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
SAY = [{"role": "user", "content": "Hello there <s>"}]


@pytest.fixture
def real() -> Engine:
    engine = Engine(TINY, threads=1, kv_tokens=4096, exact=True)
    # The file has no chat template.
    with closing(open_checkpoint(TINY)) as checkpoint:
        source = replace(checkpoint.tokenizer(), chat_template=TEMPLATE)
        engine.tokenizer = Tokenizer.from_source(source, engine.model_config.vocab_size)
    return engine


@pytest.fixture
async def http(real: Engine) -> AsyncIterator[httpx.AsyncClient]:
    async for client in client_of(Site(real, facts=served_model(plan_start(TINY, {})))):  # type: ignore[arg-type]
        yield client


async def post(http: httpx.AsyncClient, path: str, **body: Any) -> Any:
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_all_apis_give_one_text(http: httpx.AsyncClient, real: Engine) -> None:
    name = real.name
    cold: dict[str, Any] = {"temperature": 0, "top_p": 1.0, "top_k": 0}
    said = await post(
        http, "/v1/chat/completions", messages=SAY, model=name, max_tokens=20, temperature=0
    )
    text, counts = said["choices"][0]["message"]["content"], said["usage"]
    message = await post(
        http, "/v1/messages", messages=SAY, model=name, max_tokens=20, temperature=0
    )
    assert "".join(block["text"] for block in message["content"]) == text
    options = {**cold, "num_predict": 20}
    chat = await post(http, "/api/chat", messages=SAY, model=name, options=options, stream=False)
    assert chat["message"]["content"] == text
    assert chat["prompt_eval_count"] == counts["prompt_tokens"]
    assert chat["eval_count"] == counts["completion_tokens"]
    assert 0 < chat["eval_duration"] < chat["total_duration"]
    response = await post(
        http, "/v1/responses", input=SAY, model=name, max_output_tokens=20, temperature=0
    )
    assert response["output"][0]["content"][0]["text"] == text
    plain = await post(
        http, "/v1/completions", prompt="Hello", model=name, max_tokens=20, temperature=0
    )
    raw = await post(
        http, "/api/generate", prompt="Hello", raw=True, model=name, options=options, stream=False
    )
    assert raw["response"] == plain["choices"][0]["text"]
    native: dict[str, Any] = {**cold, "min_p": 0.0, "n_predict": 20, "n_probs": 2}
    completed = await post(http, "/completion", prompt="Hello", **native)
    assert completed["content"] == raw["response"]
    rated = completed["completion_probabilities"]
    assert len(rated) == completed["tokens_predicted"] == 20
    assert all(len(item["top_logprobs"]) == 2 for item in rated)
    # Greedy: what was drawn is the likeliest.
    assert all(item["top_logprobs"][0]["id"] == item["id"] for item in rated)
    assert completed["timings"]["predicted_ms"] > 0


async def test_vectors_and_facts_are_those_of_the_engine(
    http: httpx.AsyncClient, real: Engine
) -> None:
    got = await post(http, "/api/embed", model=real.name, input=["Hello", "there"])
    expected = real.embed(["Hello", "there"])
    assert got["embeddings"] == expected.tolist() and got["prompt_eval_count"] > 2
    for path, name in (("/embedding", "content"), ("/embeddings", "input")):
        listed = await post(http, path, **{name: ["Hello", "there"]})
        assert [item["embedding"] for item in listed] == [[row] for row in expected.tolist()]
    (bare,) = await post(http, "/embedding", content="Hello", embd_normalize=-1)
    assert bare["embedding"][0] != expected[0].tolist()
    long = {"model": real.name, "input": "a b " * real.max_context, "truncate": True}
    assert (await http.post("/api/embed", json=long)).status_code == 400
    (card, *_) = (await http.get("/api/tags")).json()["models"]
    assert card["size"] == TINY.stat().st_size and card["details"]["format"] == "gguf"
    assert card["details"]["quantization_level"] == "Q4_0"
    told = (await http.get("/tokenizer_info")).json()
    assert told["eos_token"] == real.tokenizer.named_tokens["eos_token"]
    prompt = await post(http, "/apply-template", messages=[{"role": "user", "content": "Hi"}])
    ids = (await post(http, "/tokenize", messages=[{"role": "user", "content": "Hi"}]))["tokens"]
    assert real.tokenizer.encode(prompt["prompt"], add_bos=False) == ids


async def test_scores_are_log_probabilities_of_the_engine(
    http: httpx.AsyncClient, real: Engine
) -> None:
    endings = ["there, you", "x", "漢"]
    got = await post(http, "/score", text_1="Hello", text_2=endings)
    before = real.tokenizer.encode("Hello")
    for index, ending in enumerate(endings):
        ids = before + real.tokenizer.encode(ending, add_bos=False)
        (scored,) = real.score([ids])
        expected = sum(p for p in scored.logprobs[len(before) :] if p is not None)
        assert got["data"][index] == {
            "index": index,
            "object": "score",
            "score": pytest.approx(expected, abs=1e-4),
        }
    assert got["object"] == "list" and got["usage"]["prompt_tokens"] > 3 * len(before)
    pairs = await post(http, "/v1/score", text_1=["Hello"] * 2, text_2=endings[:2])
    assert [item["score"] for item in pairs["data"]] == [
        pytest.approx(item["score"], abs=1e-4) for item in got["data"][:2]
    ]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"text_1": "a"}, "text_2"),
        ({"text_1": ["a", "b"], "text_2": ["c"]}, "text_1"),
        ({"text_1": [], "text_2": "c"}, "text_1"),
        ({"text_1": "a", "text_2": ""}, "text_2"),
        ({"text_1": "a", "text_2": ["b"] * 129}, "text_2"),
        ({"text_1": "a b " * 200, "text_2": "a b " * 200}, "text_2"),
        ({"text_1": "a b " * 900, "text_2": "a"}, "text_1"),
        ({"text_1": "a", "text_2": "a b " * 900}, "text_2"),
        ({"text_1": "a", "text_2": 5}, "text_2"),
        ({"text_1": "a", "text_2": "b", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"text_1": "a", "text_2": "b", "use_activation": True}, "use_activation"),
    ],
)
async def test_pairs_without_a_score_are_refused(
    http: httpx.AsyncClient, body: dict[str, Any], named: str
) -> None:
    response = await http.post("/score", json=body)
    assert response.status_code == 400 and named in response.json()["error"]["message"]
