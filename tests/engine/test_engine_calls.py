"""Ways of calling `Engine`: fields as keywords, ids from any holder, conversations, scores."""

from __future__ import annotations

import gc
import logging
import shutil
import typing
import weakref
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import halfbyte
from halfbyte import Completion, Engine, SamplingParams
from halfbyte.engine.config import EngineConfig
from halfbyte.engine.fields import EngineOptions, SamplingFields
from halfbyte.engine.grammar.base import GrammarSpec
from halfbyte.engine.grammar.limit import ReasoningLimit
from halfbyte.errors import EngineDeadError, RequestError, TokenizerError

TEXT = "Once upon a time there was"
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if loud %}!{% endif %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def engine(tiny_hf: Path) -> Iterator[Engine]:
    with Engine(tiny_hf, exact=True, max_batch=4, max_batch_tokens=64) as made:
        yield made


@pytest.mark.parametrize(
    ("typed", "meant"), [(EngineOptions, EngineConfig), (SamplingFields, SamplingParams)]
)
def test_keyword_types_are_those_of_the_dataclass(typed: Any, meant: Any) -> None:
    # What is imported for checkers alone.
    names = {
        "GrammarSpec": GrammarSpec,
        "Processor": Callable[..., Any],
        "ReasoningLimit": ReasoningLimit,
    }
    want = typing.get_type_hints(meant, localns=names)
    assert typing.get_type_hints(typed, localns=names) == {
        f.name: want[f.name] for f in fields(meant)
    }
    assert not typed.__required_keys__


def test_every_public_name_is_there() -> None:
    for name in halfbyte.__all__:
        assert getattr(halfbyte, name) is not None
    assert {"AsyncEngine", "PromptScore"} <= set(dir(halfbyte))


def test_fields_are_keywords_of_every_call(engine: Engine) -> None:
    (want,) = engine.generate(TEXT, GREEDY)
    (plain,) = engine.generate(TEXT, temperature=0, max_tokens=8, ignore_eos=True)
    assert plain.token_ids == want.token_ids
    (short,) = engine.generate(TEXT, GREEDY, max_tokens=3)
    assert short.token_ids == want.token_ids[:3]
    each = engine.generate([TEXT, TEXT], [GREEDY, None], max_tokens=2, temperature=0)
    assert [len(done.token_ids) for done in each] == [2, 2]
    deltas = list(engine.stream(TEXT, temperature=0, max_tokens=3, ignore_eos=True))
    assert [t for d in deltas for t in d.token_ids] == want.token_ids[:3]


def test_an_unknown_field_is_named_with_the_nearest(engine: Engine) -> None:
    with pytest.raises(RequestError, match=r"'temprature' \(did you mean temperature\?\)") as err:
        engine.generate(TEXT, temprature=0)  # type: ignore[call-arg]
    assert err.value.param == "temprature"
    with pytest.raises(RequestError, match="max_tokens is -1") as err:
        next(engine.stream(TEXT, max_tokens=-1))
    assert err.value.param == "max_tokens"


def test_stop_is_a_list_too(engine: Engine) -> None:
    (want,) = engine.generate(TEXT, GREEDY)
    stop = [want.text[2:4], "\0never"]
    (done,) = engine.generate(TEXT, GREEDY, stop=stop)
    assert done.text == want.text[: want.text.index(stop[0])] and done.stop_reason == stop[0]
    assert SamplingParams(stop=stop) == SamplingParams(stop=tuple(stop))
    assert hash(SamplingParams(stop=stop, stop_token_ids=[3])) is not None


def test_token_ids_come_in_any_holder(engine: Engine) -> None:
    ids = engine.tokenizer.encode(TEXT)
    (want,) = engine.generate(ids, GREEDY)
    holders: list[Any] = [
        tuple(ids),
        (i for i in ids),
        np.array(ids),
        np.array(ids, dtype=np.uint16),
        list(np.array(ids)),
        torch.tensor(ids),
        list(torch.tensor(ids)),
        torch.tensor(ids, dtype=torch.int32),
    ]
    for holder in holders:
        assert [d.token_ids for d in engine.generate(holder, GREEDY)] == [want.token_ids]
    assert engine.submit(np.array(ids), GREEDY, request_id="array") == "array"
    engine.cancel("array")
    engine.step()
    for one in (np.array(ids), torch.tensor(ids)):
        assert [t for d in engine.stream(one, GREEDY) for t in d.token_ids] == want.token_ids
        assert engine.logits(one).shape[0] == len(ids)
        assert engine.score(one)[0].token_ids == ids


def test_many_prompts_come_in_any_holder(engine: Engine) -> None:
    ids = engine.tokenizer.encode(TEXT)
    rows = [ids, [*ids[:-1], 7]]
    want = [d.token_ids for d in engine.generate(rows, GREEDY)]
    many: list[Any] = [
        (row for row in rows),
        np.array(rows),
        torch.tensor(rows),
        [np.array(row) for row in rows],
        tuple(torch.tensor(row) for row in rows),
    ]
    for prompts in many:
        assert [d.token_ids for d in engine.generate(prompts, GREEDY)] == want
    texts = (text for text in [TEXT, TEXT[:9]])
    params = (GREEDY for _ in range(2))
    assert len(engine.generate(texts, params)) == 2


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (np.array([1.0, 2.0]), "token id 1.0"),
        (torch.tensor([[[1]]]), "array of 3 dimensions"),
        (np.array(5), "array of 0 dimensions"),
        ([np.array([1, 2]), [1.5]], "token id 1.5"),
        ({1, 2}, "expected text or a list"),
        ([True, False], "token id True"),
        (range(0), "empty"),
    ],
    ids=repr,
)
def test_what_holds_no_token_ids_is_refused(engine: Engine, prompt: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        engine.submit(prompt[1] if isinstance(prompt, list) and words[-1] == "5" else prompt)
    assert not engine.has_work()


def test_a_bad_prompt_among_good_ones_runs_none(engine: Engine) -> None:
    before = engine.stats().prompt_tokens
    with pytest.raises(RequestError, match=r"token id 1\.5"):
        engine.generate([[1, 2], [1.5]])  # type: ignore[list-item]
    assert engine.stats().prompt_tokens == before and not engine.has_work()


def test_text_is_scored_as_its_tokens_are(engine: Engine) -> None:
    ids = engine.tokenizer.encode(TEXT)
    (by_ids,) = engine.score([ids])
    (by_text,) = engine.score(TEXT)
    assert by_text == by_ids and len(by_ids.logprobs) == len(ids)
    rows = engine.logits(ids).log_softmax(-1)
    want = [float(rows[i, token]) for i, token in enumerate(ids[1:])]
    assert by_ids.logprobs == [None, *want]
    assert by_ids.top_ids == [None, *rows[:-1].argmax(-1).tolist()]
    assert [s.token_ids for s in engine.score([TEXT, ids[:2]])] == [ids, ids[:2]]


def test_scores_do_not_depend_on_the_pieces(tiny_hf: Path) -> None:
    ids = [1, *range(5, 40)]
    with Engine(tiny_hf, exact=True, max_batch=1, max_batch_tokens=7) as small:
        pieces = small.score(ids)
    with Engine(tiny_hf, exact=True) as whole:
        assert whole.score(ids) == pieces


@pytest.fixture(scope="module")
def chatty(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("chatty")
    for file in tiny_hf.iterdir():
        shutil.copy(file, folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    with Engine(folder, exact=True, max_batch=4) as made:
        yield made


def test_chat_is_generate_behind_the_template(chatty: Engine) -> None:
    hello = [{"role": "user", "content": "hello"}]
    longer = [*hello, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "so?"}]
    done = chatty.chat(hello, GREEDY)
    assert isinstance(done, Completion)
    (want,) = chatty.generate(chatty.tokenizer.encode_chat(hello), GREEDY)
    assert done.token_ids == want.token_ids
    both = chatty.chat((c for c in [hello, longer]), temperature=0, max_tokens=8, ignore_eos=True)
    assert both[0].token_ids == want.token_ids
    assert both[1].usage.prompt_tokens == len(chatty.tokenizer.encode_chat(longer))
    loud = chatty.tokenizer.encode_chat(hello, enable_thinking=True)
    told = chatty.chat(hello, GREEDY, chat_template_kwargs={"enable_thinking": True})
    assert told.usage.prompt_tokens == len(loud)
    with pytest.raises(RequestError, match="messages"):
        chatty.chat([], GREEDY)
    with pytest.raises(RequestError, match=r"messages\[0\]\.role"):
        chatty.chat([{"content": "x"}], GREEDY)
    # What is no list is shown as it was given, not a piece of it.
    with pytest.raises(RequestError, match="messages is 'hello'; expected a list"):
        chatty.chat("hello", GREEDY)  # type: ignore[call-overload]
    with pytest.raises(RequestError, match=r"messages is \{'role': 'user'.*expected a list"):
        chatty.chat(hello[0], GREEDY)  # type: ignore[call-overload]


def test_chat_without_a_template_says_so(engine: Engine) -> None:
    with pytest.raises(TokenizerError, match="no chat template"):
        engine.chat([{"role": "user", "content": "hello"}])


def test_an_engine_goes_with_its_last_reference(tiny_hf: Path) -> None:
    """A tokenizer can take 100 MB, and a server may have told the collector to pass it over."""
    engine = Engine(tiny_hf, max_batch=2)
    engine.reserve()
    engine.generate([TEXT], GREEDY)
    engine.score([TEXT])
    parts = [weakref.ref(part) for part in (engine, engine.tokenizer)]
    gc.collect()
    gc.disable()
    try:
        engine.close()
        del engine
        assert [part() for part in parts] == [None, None]
    finally:
        gc.enable()


def test_close_frees_weights_and_cache(tiny_hf: Path) -> None:
    engine = Engine(tiny_hf, max_batch=2)
    stream = engine.stream(TEXT, GREEDY)
    next(stream)
    held = [weakref.ref(engine._loop.runner.model), weakref.ref(engine._loop.runner.kv)]
    before = engine.stats()
    engine.close()
    gc.collect()
    assert [ref() for ref in held] == [None, None]
    assert "closed" in repr(engine) and engine.weight_bytes > 0
    assert engine.stats().steps == before.steps and not engine.has_work()
    rest = list(stream)
    assert rest[-1].completion is not None
    assert rest[-1].completion.finish_reason is halfbyte.FinishReason.CANCELLED
    for call in (engine.step, lambda: engine.generate(TEXT), lambda: engine.score(TEXT)):
        with pytest.raises(EngineDeadError, match="closed"):
            call()
    engine.close()


def test_it_shows_itself_and_logs_its_loading(
    tiny_hf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.DEBUG, "halfbyte.engine"),
        Engine(tiny_hf, max_batch=3, max_context=100) as engine,
    ):
        shown = repr(engine)
    for part in ("fp16-llama-spm", "llama", "MB of weights", engine.backend, "100", "batch 3"):
        assert part in shown
    text = caplog.text
    assert str(tiny_hf) in text and "weights took" in text and shown in text
