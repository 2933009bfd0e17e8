"""Detokenizer: streamed text equals one-shot text, characters whole, stop strings exact."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halfbyte.engine.text.detokenizer import Detokenizer
from halfbyte.engine.text.stop_strings import StopForms

SPECIAL = 999_999
# Hypothesis draws afresh each run and prints the failing example with its seed blob.
PROPERTY = settings(
    max_examples=400,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)


class ByteTokens:
    """Token i is the i-th entry; one id is special."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.special_ids = frozenset({SPECIAL})

    def token_bytes(self, token_id: int) -> bytes:
        return b"<|special|>" if token_id == SPECIAL else self.pieces[token_id]


def detokenizer_of(pieces: list[bytes], stops: tuple[str, ...] | list[str] = ()) -> Detokenizer:
    tokens = ByteTokens(pieces)
    return Detokenizer(tokens, StopForms(tokens).matcher(tuple(stops)) if stops else None)


def run(pieces: list[bytes], stops: tuple[str, ...]) -> tuple[list[str], str | None, str]:
    """Feed one token at a time; stop feeding when stopped. Returns pieces of text and the end."""
    detokenizer = detokenizer_of(pieces, stops)
    out: list[str] = []
    for index in range(len(pieces)):
        out.append(detokenizer.feed([index]))
        if detokenizer.stopped is not None:
            break
    out.append(detokenizer.finish())
    return out, detokenizer.stopped, detokenizer.text


def oracle(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """The rule on whole texts: cut at the stop string that starts first, the shorter at a tie."""
    hits = [(text.find(s), len(s), s) for s in stops if s in text]
    if not hits:
        return text, None
    start, _, stop = min(hits)
    return text[:start], stop


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """``data`` in pieces, cut at the given places."""
    places = sorted({c % (len(data) + 1) for c in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


# A small alphabet makes overlapping and nested stop strings common.
small = st.text(alphabet="ab\né€🚀", max_size=30)
stop_lists = st.lists(st.text(alphabet="ab\né€🚀", min_size=1, max_size=5), max_size=4)
cut_lists = st.lists(st.integers(0, 200), max_size=40)


@PROPERTY
@given(text=small, stops=stop_lists, cuts=cut_lists)
def test_any_split_any_stops_equals_the_oracle(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    pieces = cut(text.encode(), cuts)
    out, stopped, whole = run(pieces, tuple(stops))
    assert ("".join(out), stopped) == oracle(text, tuple(stops))
    assert whole == "".join(out)


@PROPERTY
@given(text=small, stops=stop_lists, cuts=cut_lists)
def test_batches_of_tokens_give_the_same_text(text: str, stops: list[str], cuts: list[int]) -> None:
    pieces = cut(text.encode(), cuts)
    detokenizer = detokenizer_of(pieces, stops)
    out = detokenizer.feed(range(len(pieces))) + detokenizer.finish()
    assert (out, detokenizer.stopped) == oracle(text, tuple(stops))


@PROPERTY
@given(data=st.binary(max_size=40), cuts=cut_lists)
def test_invalid_bytes_decode_as_in_one_go(data: bytes, cuts: list[int]) -> None:
    out, _, _ = run(cut(data, cuts), ())
    assert "".join(out) == data.decode("utf-8", "replace")


@PROPERTY
@given(data=st.binary(max_size=40), stops=stop_lists, cuts=cut_lists)
def test_invalid_bytes_with_stops(data: bytes, stops: list[str], cuts: list[int]) -> None:
    out, stopped, _ = run(cut(data, cuts), tuple(stops))
    assert ("".join(out), stopped) == oracle(data.decode("utf-8", "replace"), tuple(stops))


@PROPERTY
@given(text=st.text(max_size=30), cuts=cut_lists)
def test_characters_come_whole_and_as_early_as_possible(text: str, cuts: list[int]) -> None:
    pieces = cut(text.encode(), cuts)
    detokenizer = detokenizer_of(pieces)
    fed, got = b"", ""
    for index, piece in enumerate(pieces):
        got += detokenizer.feed([index])
        fed += piece
        assert got == fed.decode("utf-8", "ignore"), "broken, or a whole character held back"
    assert got + detokenizer.finish() == text


@PROPERTY
@given(text=small, stops=stop_lists, cuts=cut_lists)
def test_only_possible_stop_beginnings_are_held_back(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    pieces = cut(text.encode(), cuts)
    detokenizer = detokenizer_of(pieces, stops)
    fed, got = b"", ""
    for index, piece in enumerate(pieces):
        got += detokenizer.feed([index])
        fed += piece
        seen = fed.decode("utf-8", "ignore")
        held = seen[len(got) :]
        if detokenizer.stopped is not None:
            assert got == oracle(text, tuple(stops))[0]
            break
        # With no stop complete, the longest end that begins a stop string is what is held.
        if not any(s in seen for s in stops):
            ends = [len(s[:n]) for s in stops for n in range(1, len(s)) if seen.endswith(s[:n])]
            assert len(held) == max(ends, default=0)


@PROPERTY
@given(text=small, stops=stop_lists, cuts=cut_lists, first=st.integers(0, 10))
def test_text_before_min_tokens_takes_no_part_in_stops(
    text: str, stops: list[str], cuts: list[int], first: int
) -> None:
    pieces = cut(text.encode(), cuts)
    detokenizer = detokenizer_of(pieces, stops)
    out = ""
    for index in range(len(pieces)):
        out += detokenizer.feed([index], check_stops=index >= first)
        if detokenizer.stopped is not None:
            break
    out += detokenizer.finish()
    # A character that is open at the border belongs to the side where it ends.
    free = b"".join(pieces[:first]).decode("utf-8", "ignore")
    rest, stopped = oracle(text[len(free) :], tuple(stops))
    assert (out, detokenizer.stopped) == (free + rest, stopped)


SPECIALS = {100: b"<|a|>", 101: b"<|b|>", 102: b"a"}


class SpecialTokens:
    """ASCII codes, and three special tokens; one is written as an ordinary character."""

    special_ids = frozenset(SPECIALS)

    def token_bytes(self, token_id: int) -> bytes:
        return SPECIALS.get(token_id) or bytes([token_id])


def symbols_of(ids: list[int]) -> list[str | int]:
    return [i if i in SPECIALS else chr(i) for i in ids]


def token_form(stop: str) -> list[str | int]:
    """The stop string with tokens wherever it can have them, the longest at a place."""
    out: list[str | int] = []
    while stop:
        token = next((i for i, text in SPECIALS.items() if stop.startswith(text.decode())), None)
        out.append(stop[0] if token is None else token)
        stop = stop[1 if token is None else len(SPECIALS[token]) :]
    return out


def special_oracle(ids: list[int], stops: list[str]) -> tuple[str, str | None]:
    """The rule on whole streams: the match that starts first, of those the one that ends first."""
    stream = symbols_of(ids)
    hits: list[tuple[int, int, int]] = []
    for start in range(len(stream)):
        for number, stop in enumerate(stops):
            tokens = token_form(stop)
            if stream[start : start + len(tokens)] == tokens:
                hits.append((start, start + len(tokens), number))
            shown = [i for i in range(start, len(stream)) if isinstance(stream[i], str)]
            shown = shown[: len(stop)]
            if shown[:1] == [start] and [stream[i] for i in shown] == list(stop):
                hits.append((start, shown[-1] + 1, number))
    if not hits:
        return "".join(s for s in stream if isinstance(s, str)), None
    start, _, number = min(hits)
    return "".join(s for s in stream[:start] if isinstance(s, str)), stops[number]


streams = st.lists(st.sampled_from([*b"ab<|>", *SPECIALS]), max_size=25)
special_stops = st.lists(
    st.lists(st.sampled_from(["a", "b", "<|a|>", "<|b|>", "<", "|"]), min_size=1, max_size=4).map(
        "".join
    ),
    min_size=1,
    max_size=3,
    unique=True,
)


@PROPERTY
@given(ids=streams, stops=special_stops, cuts=cut_lists)
def test_stop_strings_may_name_special_tokens(
    ids: list[int], stops: list[str], cuts: list[int]
) -> None:
    places = sorted({c % (len(ids) + 1) for c in cuts})
    tokens = SpecialTokens()
    detokenizer = Detokenizer(tokens, StopForms(tokens).matcher(tuple(stops)))
    out = ""
    for a, b in zip([0, *places], [*places, len(ids)], strict=True):
        out += detokenizer.feed(ids[a:b])
    out += detokenizer.finish()
    assert (out, detokenizer.stopped) == special_oracle(ids, stops)
    assert detokenizer.text == out


@pytest.mark.parametrize(
    ("ids", "stop", "text"),
    [
        ([*b"hi", 100, *b"ho"], "<|a|>", "hi"),
        ([*b"hi\n", 100, *b"ho"], "\n<|a|>", "hi"),
        ([*b"hi", 100, 101, *b"ho"], "<|a|><|b|>", "hi"),
        ([*b"hi", 100, *b"ho", 101], "o<|b|>", "hih"),
        ([*b"hi<|a|>ho"], "<|a|>", "hi"),  # spelt out
        ([*b"h", 100, *b"iho"], "hi", ""),  # side by side in the text
    ],
)
def test_special_stop_strings_by_example(ids: list[int], stop: str, text: str) -> None:
    tokens = SpecialTokens()
    detokenizer = Detokenizer(tokens, StopForms(tokens).matcher((stop,)))
    assert detokenizer.feed(ids) == text and detokenizer.stopped == stop


@pytest.mark.parametrize("stop", ["|", "<|", "a|>", "a"])
def test_parts_of_a_hidden_token_are_no_text(stop: str) -> None:
    tokens = SpecialTokens()
    detokenizer = Detokenizer(tokens, StopForms(tokens).matcher((stop,)))
    assert detokenizer.feed([*b"hi", 100]) + detokenizer.finish() == "hi"
    assert detokenizer.stopped is None


def test_stop_string_across_tokens_is_held_and_cut() -> None:
    pieces = [b"Hello ", b"<|", b"en", b"d|", b"> more"]
    detokenizer = detokenizer_of(pieces, ("<|end|>",))
    got = [detokenizer.feed([i]) for i in range(5)]
    assert got == ["Hello ", "", "", "", ""]
    assert detokenizer.stopped == "<|end|>"
    assert detokenizer.text == "Hello " and detokenizer.finish() == ""
    assert detokenizer.feed([0]) == "" and detokenizer.text == "Hello "


def test_held_text_is_released_when_it_is_no_stop_and_at_the_end() -> None:
    pieces = [b"a<", b"|x", b"<|e"]
    detokenizer = detokenizer_of(pieces, ("<|end|>",))
    assert [detokenizer.feed([i]) for i in range(3)] == ["a", "<|x", ""]
    assert detokenizer.finish() == "<|e"
    assert detokenizer.text == "a<|x<|e" and detokenizer.stopped is None


@pytest.mark.parametrize("pieces", [[b"xabcd"], [b"x", b"a", b"b", b"c", b"d"], [b"xab", b"cd"]])
def test_the_earliest_start_wins_whatever_the_split(pieces: list[bytes]) -> None:
    # "bc" is complete first, but "abcd" starts before it and may still come.
    out, stopped, _ = run(pieces, ("bc", "abcd"))
    assert ("".join(out), stopped) == ("x", "abcd")


def test_a_complete_stop_waits_only_while_an_earlier_one_is_possible() -> None:
    detokenizer = detokenizer_of([b"xabc", b"!"], ("bc", "abcd"))
    assert detokenizer.feed([0]) == "x" and detokenizer.stopped is None
    assert detokenizer.feed([1]) == "a" and detokenizer.stopped == "bc"
    waiting = detokenizer_of([b"xabc"], ("bc", "abcd"))
    assert waiting.feed([0]) + waiting.finish() == "xa" and waiting.stopped == "bc"


def test_special_tokens_have_no_text_even_inside_a_character() -> None:
    rocket = "🚀".encode()
    detokenizer = detokenizer_of([rocket[:2], rocket[2:]])
    assert detokenizer.feed([0, SPECIAL]) == ""
    assert detokenizer.feed([SPECIAL, 1]) == "🚀"


def test_incomplete_character_at_the_end_is_replaced_once() -> None:
    detokenizer = detokenizer_of(["é🚀".encode()[:-1]])
    assert detokenizer.feed([0]) == "é"
    assert detokenizer.finish() == "\ufffd" and detokenizer.text == "é\ufffd"


def test_a_space_in_front_of_a_continuation_is_kept() -> None:
    detokenizer = detokenizer_of([b" Paris", b"."])
    assert detokenizer.feed([0]) + detokenizer.feed([1]) + detokenizer.finish() == " Paris."


def test_work_per_token_does_not_grow_with_the_text() -> None:
    """Ten times the tokens take about ten times the time, with stops that almost match."""
    pieces = [b"ab ", b"abababab", "é€".encode()]
    stops = ("abababababac", "b ac", "€a€")

    def seconds(count: int) -> float:
        best = float("inf")
        for _ in range(3):
            detokenizer = detokenizer_of(pieces, stops)
            start = time.process_time()
            for index in range(count):
                detokenizer.feed([index % 3])
            assert detokenizer.stopped is None
            best = min(best, time.process_time() - start)
        return best

    # Quadratic work would make it a hundred times; 30 leaves room for a busy machine.
    assert seconds(20_000) < 30 * seconds(2_000)
