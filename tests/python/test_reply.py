"""A model's output taken apart: every notation, however it was cut, and never an exception."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyengine._reply import ToolCall, parser_for

WEATHER: dict[str, Any] = {
    "weather": {"city": {"type": "string"}, "days": {"type": "integer"}, "x": {"type": "array"}}
}
HARMONY = "<|start|>system<|message|>x<|end|><|start|>assistant"
Parsed = tuple[str, str, list[ToolCall]]


def parse(pieces: list[str], prompt: str = "", functions: Any = WEATHER) -> Parsed:
    """Reasoning, answer and calls."""
    parser = parser_for(prompt, functions)
    out = {"reasoning": "", "answer": ""}
    for piece in pieces:
        for kind, text in parser.feed(piece):
            assert text
            out[kind] += text
    for kind, text in parser.finish():
        out[kind] += text
    return out["reasoning"], out["answer"], parser.calls


def call(name: str = "weather", key: str | None = None, **arguments: Any) -> ToolCall:
    return ToolCall(name, arguments, key)


CASES: list[tuple[str, str, Parsed]] = [
    ("", "Hello <b>.\n", ("", "Hello <b>.\n", [])),
    ("", "  padded  ", ("", "  padded  ", [])),
    ("", "<think>\nwhy\n</think>\n\nYes.", ("why", "Yes.", [])),
    ("", "\n<think>a <b> </think>", ("a <b>", "", [])),
    ("", "[THINK]why[/THINK]Yes", ("why", "Yes", [])),
    ("", "Tags like <think> inside stay", ("", "Tags like <think> inside stay", [])),
    ("<think>\n", "why\n</think>\n\nYes", ("why", "Yes", [])),
    ("<think>\n\n</think>\n\n", "Yes", ("", "Yes", [])),
    ("", "<think>cut short ", ("cut short", "", [])),
    ("", "<thin", ("", "<thin", [])),
    (
        "",
        'On it.\n<tool_call>\n{"name": "weather", "arguments": {"city": "K\u00f6ln"}}\n'
        "</tool_call>",
        ("", "On it.", [call(city="K\u00f6ln")]),
    ),
    (
        "",
        '<think>t</think><tool_call>{"name":"weather"}</tool_call>\n<tool_call>{"name":"b",'
        '"arguments":"{\\"k\\": 1}"}</tool_call>\nDone',
        ("t", "Done", [call(), call("b", k=1)]),
    ),
    ("", '<tool_call>{"name": "weather"}', ("", "", [call()])),
    ("", "<tool_call>{oops}</tool_call> so", ("", "<tool_call>{oops}</tool_call> so", [])),
    ("", "a <tool_call>cut", ("", "a <tool_call>cut", [])),
    ("", '<tool_call>{"name": 3}</tool_call>', ("", '<tool_call>{"name": 3}</tool_call>', [])),
    (
        "",
        "<tool_call>\n<function=weather>\n<parameter=city>\nNew\nYork\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n<parameter=x>[1]</parameter>\n</function>\n</tool_call>",
        ("", "", [call(city="New\nYork", days=3, x=[1])]),
    ),
    (
        "",
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>3</arg_value>\n"
        "<arg_key>days</arg_key><arg_value>3</arg_value></tool_call>",
        ("", "", [call(city="3", days=3)]),
    ),
    (
        "",
        '{"name": "weather", "parameters": {"city": "Rome"}}; '
        '{"name": "weather", "parameters": {}}',
        ("", "", [call(city="Rome"), call()]),
    ),
    ("", '{"type":"function","name":"weather","parameters":{}}', ("", "", [call()])),
    ("", '{"name": "x", "parameters": {}}', ("", '{"name": "x", "parameters": {}}', [])),
    ("", '{"name": "weather"} is JSON', ("", '{"name": "weather"} is JSON', [])),
    (
        "",
        '<|python_tag|>{"name": "other", "parameters": {"q": [1, null]}}',
        ("", "", [call("other", q=[1, None])]),
    ),
    (
        "",
        '<|python_tag|>brave_search.call(query="a (b)")',
        ("", "", [call("brave_search", query="a (b)")]),
    ),
    ("", "<|python_tag|>import os\n", ("", "<|python_tag|>import os\n", [])),
    (
        "",
        'Sure: [TOOL_CALLS][{"name": "weather", "arguments": {"days": 1}, "id": "abc123DEF"}]',
        ("", "Sure:", [call(key="abc123DEF", days=1)]),
    ),
    (
        "",
        '[TOOL_CALLS]weather[ARGS]{"days": 1}[TOOL_CALLS]b[CALL_ID]x9[ARGS]{}',
        ("", "", [call(days=1), call("b", "x9")]),
    ),
    (
        "",
        "<|channel>thought\nwhy\n<channel|>On it. <|tool_call>call:weather{city:"
        '<|"|>K\u00f6ln, "x":{y:1}<|"|>,days:3,x:[1,{<|"|>k<|"|>:true}]}<tool_call|>',
        (
            "why",
            "On it.",
            [call(city='K\u00f6ln, "x":{y:1}', days=3, x=[1, {"k": True}])],
        ),
    ),
    (
        "",
        "<|tool_call>call:f{}<tool_call|><|tool_call>call:f{x:oops}<tool_call|>",
        ("", "<|tool_call>call:f{x:oops}<tool_call|>", [call("f")]),
    ),
    ("", "[TOOL_CALLS] none", ("", "[TOOL_CALLS] none", [])),
    ("", '[TOOL_CALLS][{"name": "a"}, 3]', ("", '[TOOL_CALLS][{"name": "a"}, 3]', [])),
    (
        HARMONY,
        "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
        ("why", "Yes.", []),
    ),
    (
        HARMONY,
        "<|channel|>commentary<|message|>Look: <|end|><|start|>assistant<|channel|>commentary "
        'to=functions.weather <|constrain|>json<|message|>{"days": 1}',
        ("", "Look: ", [call(days=1)]),
    ),
    (
        HARMONY,
        ' to=functions.weather<|channel|>commentary json<|message|>{"days": 1}<|call|>',
        ("", "", [call(days=1)]),
    ),
    (
        HARMONY,
        "<|channel|>commentary to=functions.weather<|message|>{oops",
        ("", "<|channel|>commentary to=functions.weather<|message|>{oops", []),
    ),
    (HARMONY, "No channel at all.", ("", "No channel at all.", [])),
    (HARMONY, "<|channel|>final<|message|>", ("", "", [])),
]


@pytest.mark.parametrize(("prompt", "text", "expected"), CASES)
def test_notations_in_one_piece_and_letter_by_letter(
    prompt: str, text: str, expected: Parsed
) -> None:
    assert parse([text], prompt) == expected
    assert parse(list(text), prompt) == expected


def test_a_program_is_a_call_where_there_is_a_tool_for_it() -> None:
    functions = WEATHER | {"ipython": {}}
    found = parse(["<|python_tag|>import os\nprint(1)"], functions=functions)
    assert found == ("", "", [call("ipython", code="import os\nprint(1)")])


def test_bare_json_is_text_without_tools() -> None:
    text = '{"name": "weather", "parameters": {}}'
    assert parse([text], functions={}) == ("", text, [])


@pytest.mark.parametrize(
    "inside",
    ["[" * 100_000, '{"name":' * 50_000, '{"name":"a","arguments":{"x":NaN}}', "1" * 10_000,
     '{"name":"a","arguments":' + "[" * 100_000, "\x00", "name\n" + "<arg_key>" * 1000],
)  # fmt: skip
@pytest.mark.parametrize(
    "opener", ["<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<|tool_call>", "{"]
)
def test_hostile_calls_are_text(opener: str, inside: str) -> None:
    assert parse([opener + inside], functions={"python ": {}}) == ("", opener + inside, [])


def test_text_comes_out_as_soon_as_it_is_certain() -> None:
    parser = parser_for("", WEATHER)
    assert list(parser.feed("One")) == [("answer", "One")]
    assert list(parser.feed(" <to")) == []
    assert list(parser.feed("e>")) == [("answer", " <toe>")]
    parser = parser_for("<think>", WEATHER)
    assert list(parser.feed("hm <")) == [("reasoning", "hm")]
    assert list(parser.feed("b> ")) == [("reasoning", " <b>")]


TAGS = parser_for("", {}).markup | parser_for(HARMONY, {}).markup
PARTS = [*sorted(TAGS), '{"name": "weather", "arguments": {}}', "functions.weather",
         "assistant", "analysis", "final", " to=", " ", "\n", "x", "<", "{", "}", "<function=f>",
         "</function>", "<parameter=a>1</parameter>"]  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.sampled_from(PARTS), max_size=12),
    st.lists(st.integers(1, 9), min_size=1),
    st.sampled_from(["", "<think>", HARMONY]),
)
def test_cuts_never_show_and_nothing_raises(
    parts: list[str], sizes: list[int], prompt: str
) -> None:
    text = "".join(parts)
    pieces, at = [], 0
    while at < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[at : at + size])
        at += size
    assert parse(pieces, prompt) == parse([text], prompt)
