"""Long answers: the page draws on while they come."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import pytest
from page_driver import PacedEngine, Visitor, see
from server_support import LiveServer, wait_until

pytestmark = pytest.mark.browser

SECTION = """## Part {number}

Some **bold** words, `code` and a [link](https://example.org/{number}) in a paragraph of an
answer that goes on and on.

- one
- two

```python
def part_{number}(x):
    return x + {number}
```

| a | b |
|---|---|
| 1 | $x^2$ |

"""
TOKENS = 10_000
# Notes the time between frames, milliseconds, until `stop` is called.
WATCH = """() => {
    window.gaps = [];
    let last = performance.now(), on = true;
    window.stopWatch = () => { on = false; return window.gaps; };
    const frame = now => {
        window.gaps.push(now - last);
        last = now;
        if (on) requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
}"""
# A person takes what happens within 100 ms as immediate (Nielsen, Usability Engineering, 1993); a
# pause that is seen is longer.
SEEN_MS = 100
QUIET_S = 3


def long_answer() -> str:
    """Markdown of `TOKENS` bytes, which the fake engine writes as so many tokens."""
    text = "".join(SECTION.format(number=number) for number in range(100))
    return text[: TOKENS - len("The end.")] + "The end."


def p99(gaps: list[float]) -> float:
    return sorted(gaps)[int(len(gaps) * 0.99)]


def of_the_machine(visitor: Visitor, url: str) -> float:
    """99th percentile of the time between frames while nobody writes to the page, milliseconds.

    Engine and server work as they will for the page, but for another client: they, the browser,
    which draws without a GPU, and whatever else runs share the cores, so that frames are late that
    the page has nothing to do with.
    """

    def read() -> None:
        body: Any = {"messages": [{"role": "user", "content": "Write"}], "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            end = time.monotonic() + QUIET_S
            for _ in answer.iter_lines():
                if time.monotonic() > end:
                    return

    visitor.page.evaluate(WATCH)
    reader = threading.Thread(target=read)
    reader.start()
    reader.join()
    return p99(visitor.page.evaluate("() => window.stopWatch()"))


@pytest.mark.parametrize("rated", [False, True], ids=["plain", "probabilities"])
def test_a_long_answer_does_not_stutter(
    visitor: Visitor, server: LiveServer, engine: PacedEngine, rated: bool
) -> None:
    engine.script = long_answer()
    engine.step_s = 0.001
    if rated:
        visitor.open_settings().get_by_role("checkbox", name="Token probabilities").check()
        visitor.close_settings()
    quiet = of_the_machine(visitor, server.url)
    visitor.page.evaluate(WATCH)
    visitor.send("Write")
    # Not by looking at the page: that takes its time, too.
    wait_until(lambda: engine.stats().finished.get("stop", 0) > 0, 120)
    gaps: Any = visitor.page.evaluate("() => window.stopWatch()")
    visitor.finished()
    see(visitor.written).to_contain_text("The end.")
    told = f"{len(gaps)} frames, p99 {p99(gaps):.0f} ms, of the machine alone {quiet:.0f} ms"
    print(told)
    assert p99(gaps) < quiet + SEEN_MS, told
    nodes = visitor.page.evaluate("() => document.querySelectorAll('*').length")
    assert nodes < TOKENS  # far fewer elements than tokens
    if rated:
        visitor.page.evaluate(WATCH)
        visitor.button("Tokens", visitor.answer).click()
        token = visitor.answer.locator("[tabindex]").filter(has_text="S").first
        token.hover()
        see(visitor.page.get_by_role("tooltip")).to_be_visible()
        gaps = visitor.page.evaluate("() => window.stopWatch()")
        # 10 000 elements are laid out once; a second is what keeps a person's thought.
        assert max(gaps) < 1000
