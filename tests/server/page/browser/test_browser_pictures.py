"""Takes the pictures of `docs/page/`: ``make page-pictures``."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from page_driver import PacedEngine, Visitor, see
from server_support import LiveServer

FOLDER = os.environ.get("HALFBYTE_PICTURES")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not FOLDER, reason="takes pictures: make page-pictures"),
]

MAX_BYTES = 200_000
QUESTION = "How is a sum of squares computed, and what does it cost?"
ANSWER = """The sum of squares of $n$ numbers is

$$s = \\sum_{i=1}^{n} x_i^2$$

```python
def sum_of_squares(values: list[float]) -> float:
    return sum(value * value for value in values)
```

| n | multiplications | additions |
|---|---|---|
| 10 | 10 | 9 |
| 1000 | 1000 | 999 |

It is **linear**: each number is read once.
"""


def take(visitor: Visitor, name: str) -> None:
    """Write a picture in 64 colours, which is a third of the bytes of one in all."""
    visitor.page.mouse.move(0, 0)
    image: Any = importlib.import_module("PIL.Image")
    whole = image.open(io.BytesIO(visitor.page.screenshot()))
    file = Path(FOLDER or "", f"{name}.png")
    file.parent.mkdir(parents=True, exist_ok=True)
    whole.convert("RGB").quantize(64).save(file, optimize=True)
    assert file.stat().st_size < MAX_BYTES, file


def ask(visitor: Visitor, engine: PacedEngine) -> None:
    engine.script = "It is a tree with acorns."
    visitor.ask("What is an oak?")
    visitor.button("New chat").click()
    engine.script = ANSWER
    engine.step_s = 0.005  # or the figures are those of no model
    visitor.ask(QUESTION)


@pytest.mark.parametrize(
    ("name", "theme", "width"),
    [("light", "light", 1200), ("dark", "dark", 1200), ("phone", "light", 390)],
)
def test_pictures_of_a_chat(
    visit: Callable[..., Visitor], engine: PacedEngine, name: str, theme: str, width: int
) -> None:
    size = {"width": width, "height": 760}
    visitor = visit(color_scheme=theme, viewport={"width": 1200, "height": 760})
    ask(visitor, engine)
    visitor.page.set_viewport_size(size)  # type: ignore[arg-type]
    visitor.written.get_by_text("linear").scroll_into_view_if_needed()
    take(visitor, name)


def test_picture_of_tokens(visit: Callable[..., Visitor], engine: PacedEngine) -> None:
    visitor = visit(color_scheme="light", viewport={"width": 1200, "height": 760})
    visitor.open_settings().get_by_role("checkbox", name="Token probabilities").check()
    visitor.close_settings()
    engine.script = "The oak is a tree with acorns, and lives for centuries."
    visitor.ask("What is an oak?")
    visitor.button("Tokens", visitor.answer).click()
    visitor.answer.locator("[tabindex]").filter(has_text="k").first.focus()
    see(visitor.page.get_by_role("tooltip")).to_be_visible()
    take(visitor, "tokens")


def test_picture_of_two_models(
    visit: Callable[..., Visitor], two_models: LiveServer, engines: dict[str, PacedEngine]
) -> None:
    visitor = visit(two_models.url, "#compare", viewport={"width": 1200, "height": 760})
    engines["left"].script = "An oak is a tree with acorns, and lives for centuries."
    engines["right"].script = "An oak is a tree with acorns, all of them edible."
    page = visitor.page
    page.get_by_role("combobox", name="Right model").select_option("right")
    page.get_by_role("textbox", name="Prompt").fill("What is an oak?")
    visitor.button("Compare", page.get_by_role("main")).click()
    see(page.get_by_role("table").last).to_contain_text("%")
    take(visitor, "compare")
