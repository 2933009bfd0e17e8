"""Every numeric field with every kind of extreme value: no 5xx, and the server is well."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import httpx
from attack_support import Victim

COUNT = 900
FIELDS = {
    "/v1/completions": [
        *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty"),
        *("frequency_penalty", "max_tokens", "min_tokens", "seed", "priority", "n", "best_of"),
        *("logprobs", "stop_token_ids", "length_penalty", "truncate_prompt_tokens", "prompt"),
    ],
    "/v1/chat/completions": [
        *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty"),
        *("frequency_penalty", "max_tokens", "max_completion_tokens", "min_tokens", "seed"),
        *("priority", "n", "top_logprobs", "stop_token_ids"),
    ],
}
# As JSON text: some of them no Python number can be.
VALUES = [
    *("0", "-0.0", "1", "-1", "2", "3", "0.5", "1e-7", "-1e-7", "1e-38", "1e-300", "5e-324"),
    *("-5e-324", "1e16", "1e38", "3.5e38", "1e300", "1.7976931348623157e308", "1e999", "-1e999"),
    *("NaN", "Infinity", "-Infinity", "100", "99.999", "2147483647", "2147483648", "-2147483648"),
    *("9223372036854775807", "9223372036854775808", "-9223372036854775808", "49151", "49152"),
    *("18446744073709551616", "9" * 400, "true", '"1"', "null", "[]", "1.0", "0.999999999"),
]
BASE = {
    "/v1/completions": {"prompt": '"The sea is"', "max_tokens": "4"},
    "/v1/chat/completions": {
        "messages": '[{"role": "user", "content": "Hi"}]',
        "max_tokens": "4",
    },
}


def bodies(rng: random.Random) -> list[tuple[str, str]]:
    """Each field with each value alone, then pairs of fields, `COUNT` in all."""
    single = [(p, {f: v}) for p, fields in FIELDS.items() for f in fields for v in VALUES]
    chosen = rng.sample(single, COUNT * 2 // 3)
    while len(chosen) < COUNT:
        path = rng.choice(list(FIELDS))
        chosen.append((path, {f: rng.choice(VALUES) for f in rng.sample(FIELDS[path], 2)}))
    out = []
    for path, fields in chosen:
        body = dict(BASE[path])
        for name, value in fields.items():
            # Fields that take lists of numbers get a list.
            body[name] = f"[{value}]" if name in ("stop_token_ids", "prompt") else value
        out.append((path, "{" + ", ".join(f'"{k}": {v}' for k, v in body.items()) + "}"))
    return out


def test_extreme_numbers(victim: Callable[..., Victim], report: Callable[..., None]) -> None:
    seed = random.randrange(2**32)
    server = victim()
    before = server.ask()["choices"][0]["text"]
    statuses: Counter[int] = Counter()
    failures: list[str] = []

    async def attack() -> None:
        gate = asyncio.Semaphore(16)
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as http:

            async def one(path: str, body: str) -> None:
                async with gate:
                    kind = {"Content-Type": "application/json"}
                    response = await http.post(path, content=body, headers=kind)
                statuses[response.status_code] += 1
                if response.status_code >= 500:
                    failures.append(f"{response.status_code} for {body[:300]}")

            await asyncio.gather(*(one(*item) for item in bodies(random.Random(seed))))

    asyncio.run(attack())
    report(requests=statuses.total(), statuses=dict(sorted(statuses.items())), seed=seed)
    assert not failures, f"seed {seed}: {failures[:10]}"
    assert statuses.total() == COUNT and {200, 400} <= set(statuses)
    assert server.ask()["choices"][0]["text"] == before
    assert not any(server.wait_until_idle().values())
