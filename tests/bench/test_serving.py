"""The load on servers: what is measured of a real one, and what the table says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from halfbyte.bench.serving import (
    ENGINE,
    Load,
    drawn_prompts,
    main,
    run_load,
    serving_table,
)
from halfbyte.errors import ConfigError


def test_prompts_are_drawn_anew_for_each_load() -> None:
    some = drawn_prompts(Load(3, "short"), 1)
    assert len(some) == Load(3, "short").requests == 6 == len(set(some))
    assert some == drawn_prompts(Load(3, "short"), 1) != drawn_prompts(Load(3, "short"), 2)
    assert len(drawn_prompts(Load(1, "long"), 1)) == 4


def test_a_server_is_measured(
    tiny_hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real server over a tiny model, one round."""
    main(
        [
            *(str(tiny_hf), "--users", "1,2", "--prompt", "short", "--tokens", "5"),
            *("--rounds", "1", "--threads", "1", "--stagger", "0.01"),
            *("--engine", "--out", str(tmp_path)),
        ]
    )
    (path,) = tmp_path.glob("serving-*.json")
    report = json.loads(path.read_text())
    assert list(report["samples"]) == ["1 user, short prompts", "2 users, short prompts"]
    for each in report["samples"].values():
        for label in ("halfbyte", ENGINE):
            (sample,) = each[label]
            assert sample["requests"] == 4 and sample["completion_tokens"] == 20
            assert len(sample["first_s"]) == 4 and all(0 < x < 60 for x in sample["first_s"])
            # Some tokens of a tiny model are no text, so that events have several or none.
            assert len(sample["gaps_s"]) <= 16 and sample["seconds"] > 0
        assert each[ENGINE][0]["prompt_tokens"] == each["halfbyte"][0]["prompt_tokens"]
    out = capsys.readouterr().out
    assert out.strip() == serving_table(report).strip() and "2 users, short prompts" in out


def test_a_refusal_ends_the_run() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 7\r\n\r\nso sad\n")
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            await run_load(f"http://127.0.0.1:{port}", Load(1, "short"), 0, 5)

    with pytest.raises(ConfigError, match="so sad"):
        asyncio.run(run())
