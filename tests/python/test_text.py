"""Streaming helpers: every way to cut the input gives the result of the uncut input."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyengine._errors import ArgumentError
from pyengine._text import StopMatcher, Utf8Stream


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    borders = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(borders)]


def utf8(parts: list[bytes]) -> str:
    stream = Utf8Stream()
    return "".join(stream.feed(part) for part in parts) + stream.flush()


def test_utf8_holds_back_half_a_character() -> None:
    stream = Utf8Stream()
    assert [stream.feed(bytes([byte])) for byte in "a\U0001f680b".encode()] == [
        "a",
        "",
        "",
        "",
        "\U0001f680",
        "b",
    ]
    assert stream.flush() == ""


def test_utf8_flush_gives_one_replacement_and_starts_afresh() -> None:
    stream = Utf8Stream()
    assert stream.feed(b"\xf0\x9f\x9a") == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""
    assert stream.feed(b"ok") == "ok"


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe",
        b"\xe2\x82A",
        b"\xe2\x28\xa1",
        b"\xf0\x9f\xf0\x9f\x9a\x80",
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"\xf5\x80\x80\x80",
        b"\xf4\x90\x80\x80",
        b"a\x00b",
    ],
)
def test_utf8_invalid_bytes_byte_by_byte(data: bytes) -> None:
    assert utf8([bytes([byte]) for byte in data]) == data.decode("utf-8", "replace")


@given(
    st.one_of(st.binary(max_size=40), st.text(max_size=20).map(lambda t: t.encode())),
    st.lists(st.integers(0, 40), max_size=10),
)
@settings(deadline=None)
def test_utf8_equals_decoding_the_whole(data: bytes, cuts: list[int]) -> None:
    assert utf8(pieces(data, cuts)) == data.decode("utf-8", "replace")


def stop(parts: list[str], stops: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    out = ""
    stopped = False
    for part in parts:
        text, stopped = matcher.feed(part)
        out += text
        if stopped:
            break
    return out + matcher.flush(), stopped


def reference(text: str, stops: list[str]) -> tuple[str, bool]:
    """One character at a time: the first prefix that ends with a stop string ends the text."""
    for end in range(1, len(text) + 1):
        ending = [s for s in stops if text[:end].endswith(s)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


def test_stop_never_leaks_a_part() -> None:
    matcher = StopMatcher(["</end>"])
    assert matcher.feed("text<") == ("text", False)
    assert matcher.feed("/en") == ("", False)
    assert matcher.feed("d>after") == ("", True)
    assert matcher.feed("more") == ("", True)
    assert matcher.flush() == ""


def test_stop_held_text_is_released_when_it_was_none() -> None:
    matcher = StopMatcher(["</end>"])
    assert matcher.feed("a</e") == ("a", False)
    assert matcher.feed("x<") == ("</ex", False)
    assert matcher.flush() == "<"
    assert matcher.flush() == ""


def test_stop_that_overlaps_itself() -> None:
    assert stop(["a", "a", "b", "aac"], ["aabaac"]) == ("", True)
    assert stop(["aabaabaac"], ["aabaac"]) == ("aab", True)
    assert stop(list("aabaabaac"), ["aabaac"]) == ("aab", True)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two", ["two", "one"], ""),
        ("hello world", ["world", "lo w"], "hel"),
        ("say: stop", ["stop", ": stop"], "say"),
        ("abcd", ["abcd", "c"], "ab"),
        ("\u65e5\u672c\u8a9e", ["\u672c"], "\u65e5"),
    ],
)
def test_stop_first_complete_wins(text: str, stops: list[str], expected: str) -> None:
    assert stop([text], stops) == (expected, True)
    assert stop(list(text), stops) == (expected, True)


def test_stop_without_stop_strings_passes_everything() -> None:
    matcher = StopMatcher([])
    assert matcher.feed("abc") == ("abc", False)
    assert matcher.feed("") == ("", False)
    assert matcher.flush() == ""


@given(
    st.lists(st.text("abc", max_size=4), max_size=8),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
@settings(deadline=None)
def test_stop_equals_one_character_at_a_time(parts: list[str], stops: list[str]) -> None:
    assert stop(parts, stops) == reference("".join(parts), stops)


@given(
    st.lists(st.text("abc", max_size=4), max_size=8),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
@settings(deadline=None)
def test_stop_emits_only_what_can_no_longer_match(parts: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    seen = out = ""
    for part in parts:
        text, stopped = matcher.feed(part)
        seen, out = seen + part, out + text
        if stopped:
            return
        held = seen[len(out) :]
        assert seen == out + held
        # Neither too little is held back nor too much.
        assert not any(seen.endswith(s[:n]) for s in stops for n in range(len(held) + 1, len(s)))
        assert not held or any(s.startswith(held) for s in stops)


@pytest.mark.parametrize("stops", [[""], ["a", ""], "stop"])
def test_stop_strings_must_not_be_empty(stops: list[str]) -> None:
    with pytest.raises(ArgumentError, match=r"stop.*expected .* found"):
        StopMatcher(stops)
