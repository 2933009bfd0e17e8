"""Takes the pictures of `docs/page/`, of the default model's answers: ``make page-pictures``."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_driver import Visitor, see, site_of
from server_support import LiveServer

from halfbyte import Engine

FOLDER = os.environ.get("HALFBYTE_PICTURES")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.model,
    pytest.mark.skipif(not FOLDER, reason="takes pictures: make page-pictures"),
]

MAX_BYTES = 200_000
SIZE: Any = {"width": 1200, "height": 820}
PHONE: Any = {"width": 390, "height": 820}
STILL: Any = {"color_scheme": "light", "reduced_motion": "reduce"}
GRAVITY = "What is gravity? Answer in two sentences."
FACTORIAL = "Write a Python function that returns the factorial of n."
# An answer of the model on a busy machine, milliseconds.
SLOW_MS = 120_000


@pytest.fixture(scope="module")
def served(smollm2: Path) -> Iterator[LiveServer]:
    """The default model twice: inputs of its matrices left as they are, and rounded to 8 bits."""
    engines = {
        "smollm2": Engine(smollm2, max_context=2048, activations="float"),
        "smollm2-int8": Engine(smollm2, max_context=2048, activations="int8-token"),
    }
    server = LiveServer(site_of(engines))
    yield server
    server.stop()


@pytest.fixture
def onlooker(visit: Callable[..., Visitor], served: LiveServer) -> Visitor:
    """Somebody whose answers are the likeliest ones, and come with probabilities."""
    visitor = visit(served.url, viewport=SIZE, **STILL)
    dialog = visitor.open_settings()
    dialog.get_by_label("temperature", exact=True).fill("0")
    dialog.get_by_role("checkbox", name="Token probabilities").check()
    visitor.close_settings()
    return visitor


def take(visitor: Visitor, name: str) -> None:
    """Write a picture in 160 colours, which is half of the bytes of one in all."""
    image: Any = importlib.import_module("PIL.Image")
    whole = image.open(io.BytesIO(visitor.page.screenshot()))
    file = Path(FOLDER or "", f"{name}.png")
    file.parent.mkdir(parents=True, exist_ok=True)
    whole.convert("RGB").quantize(160).save(file, optimize=True)
    assert file.stat().st_size < MAX_BYTES, file


def test_pictures_of_a_chat(
    onlooker: Visitor, visit: Callable[..., Visitor], served: LiveServer
) -> None:
    page = onlooker.page
    for question in (FACTORIAL, GRAVITY):
        onlooker.send(question)
        see(onlooker.written).to_contain_text(".", timeout=SLOW_MS)
        see(onlooker.button("Send")).to_be_visible(timeout=SLOW_MS)
    page.mouse.move(600, 810)  # or what it is over looks pressed
    take(onlooker, "chat-light")
    page.emulate_media(color_scheme="dark")
    take(onlooker, "chat-dark")
    page.emulate_media(color_scheme="light")
    onlooker.button("Tokens", onlooker.answer).click()
    onlooker.answer.locator("[tabindex]").nth(8).hover()
    see(page.get_by_role("tooltip")).to_be_visible()
    take(onlooker, "tokens")
    phone = visit(served.url, viewport=PHONE, is_mobile=True, has_touch=True, **STILL)
    phone.take_in(onlooker.export())
    phone.button("Dismiss").click()
    phone.button("Conversations").click()
    phone.title(FACTORIAL).click()
    see(phone.answers).to_have_count(2)
    take(phone, "phone")


def test_picture_of_two_models(onlooker: Visitor) -> None:
    page = onlooker.open("#compare").page
    page.get_by_role("combobox", name="Right model").select_option("smollm2-int8")
    page.get_by_role("textbox", name="Prompt").fill(FACTORIAL)
    compare = onlooker.button("Compare", page.get_by_role("main"))
    compare.click()
    see(onlooker.button("Stop", page.get_by_role("main"))).to_be_enabled()
    see(compare).to_be_enabled(timeout=SLOW_MS)
    see(page.get_by_role("main").get_by_role("table").last).to_contain_text("%")
    take(onlooker, "compare")
