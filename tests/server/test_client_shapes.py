"""Requests in the shapes that programs send which cannot be run here: their fields all pass."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio

NAME = "fake-model"
TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
]
OPEN_WEBUI: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {
            "stream": True,
            "model": NAME,
            "messages": TURNS,
            "stream_options": {"include_usage": True},
            "temperature": 0.8,
            "top_p": 0.9,
            "frequency_penalty": 0,
            "max_tokens": 20,
            "seed": 4,
            "stop": ["###"],
            "logit_bias": None,
        },
    ),
    # The title, tags and follow-ups of a chat.
    (
        "/v1/chat/completions",
        {"model": NAME, "messages": TURNS, "stream": False, "max_completion_tokens": 20},
    ),
    (
        "/api/chat",
        {
            "model": f"{NAME}:latest",
            "messages": [{"role": "user", "content": "x", "images": None}],
            "options": {"num_ctx": 512, "num_predict": 8, "temperature": 0.8, "mirostat": 0},
            "stream": True,
            "keep_alive": "5m",
        },
    ),
]
CONTINUE: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {"messages": TURNS, "model": NAME, "max_tokens": 40, "temperature": 0.5, "stream": True},
    ),
    # Completion in the editor: the markers are in the prompt already.
    (
        "/v1/completions",
        {
            "model": NAME,
            "prompt": "<|fim_prefix|>def f(<|fim_suffix|>\n<|fim_middle|>",
            "max_tokens": 20,
            "temperature": 0.01,
            "stream": True,
            "stop": [
                "<|endoftext|>",
                "<|fim_prefix|>",
                "/src/",
                "#- coding",
                "```",
                "\n\n",
                "def ",
            ],
            "frequency_penalty": 0,
            "presence_penalty": 0,
        },
    ),
    (
        "/api/generate",
        {
            "model": NAME,
            "prompt": "x",
            "raw": True,
            "keep_alive": 1800,
            "options": {
                "temperature": 0.01,
                "num_predict": 8,
                "stop": ["\n"],
                "num_ctx": 512,
            },
        },
    ),
    (
        "/completion",
        {"prompt": "x", "stream": True, "n_predict": 8, "temperature": 0.2, "cache_prompt": True},
    ),
    ("/api/show", {"name": NAME}),
]
AIDER: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {
            "model": NAME,
            "messages": [
                {
                    "role": "system",
                    "content": [
                        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
                    ],
                },
                *TURNS[1:],
            ],
            "temperature": 0,
            "stream": True,
            "max_tokens": 20,
        },
    ),
]


@pytest.mark.parametrize(("path", "body"), [*OPEN_WEBUI, *CONTINUE, *AIDER])
async def test_they_are_answered(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    if body.get("stream") and path.startswith("/v1/"):
        assert answer.text.endswith("data: [DONE]\n\n") and '"error"' not in answer.text


async def test_what_they_ask_first(http: httpx.AsyncClient) -> None:
    headers = {"Authorization": "Bearer sk-none", "X-OpenWebUI-User-Name": "me"}
    for path in ("/v1/models", "/api/tags", "/api/version", "/api/ps", "/health", "/props"):
        assert (await http.get(path, headers=headers)).status_code == 200
