"""Chat templates: what transformers gives, within bounds, and typed errors for all else.

That they equal transformers on published templates is tested in tests/reference.
"""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyengine._errors import ArgumentError, ChatTemplateError
from pyengine._template import ChatTemplate, ChatTemplates

USER = [{"role": "user", "content": "Hi"}]
CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def render(source: str, messages: Any = USER, **options: Any) -> str:
    return ChatTemplate(source, "test").render(messages, **options)


# ---- what templates can use ----


def test_messages_and_the_generation_prompt() -> None:
    chat = [*USER, {"role": "assistant", "content": "Yo"}]
    said = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    assert render(CHATML, chat) == said
    assert render(CHATML, chat, add_generation_prompt=True) == said + "<|im_start|>assistant\n"


def test_blocks_leave_no_line_behind() -> None:
    source = "a\n   {% if true %}\nb\n   {% endif %}\n   {# note #}\nc\n"
    assert render(source) == "a\nb\nc"


def test_loop_controls() -> None:
    source = "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}"
    assert render(source + "{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "023"


def test_loop_variables_are_those_of_the_whole_list() -> None:
    source = (
        "{% for m in [1, 2, 3] %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}"
    )
    assert render(source) == "1/3False 2/3False 3/3True "
    source = "{% for i in range(6) if i % 2 %}{{ loop.previtem }}{{ i }},{% endfor %}"
    assert render(source) == "1,13,35,"
    assert render("{% for x in nothing %}{% else %}none{% endfor %}") == "none"
    source = "{% for n in [1, [2, [3]]] recursive %}{% if n is number %}{{ n }}{% else %}"
    assert render(source + "({{ loop(n) }}){% endif %}{% endfor %}") == "1(2(3))"


def test_tojson_is_that_of_python() -> None:
    value = {"b": "é<&'\"", "a": [1, 2.5, None, True]}
    assert render("{{ v | tojson }}", variables={"v": value}) == (
        '{"b": "é<&\'\\"", "a": [1, 2.5, null, true]}'
    )
    source = "{{ v | tojson(indent=2, sort_keys=true, ensure_ascii=true) }}"
    assert render(source, variables={"v": {"b": "é", "a": 1}}) == (
        '{\n  "a": 1,\n  "b": "\\u00e9"\n}'
    )
    assert render("{{ [1, 2] | tojson(separators=(',', ':')) }}") == "[1,2]"


def test_generation_tags_show_their_body() -> None:
    source = "{% set x = 1 %}{% generation %}{{ x }}a{% set x = 2 %}{% endgeneration %}{{ x }}"
    assert render(source) == "1a1"


def test_strftime_now() -> None:
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)


def test_tools_documents_and_variables() -> None:
    source = "{{ tools[0].name }} {{ documents[0].title }} {{ bos_token }}{{ enable_thinking }}"
    found = render(
        source,
        tools=[{"name": "f"}],
        documents=[{"title": "T"}],
        variables={"bos_token": "<s>", "enable_thinking": False},
    )
    assert found == "f T <s>False"
    assert render("{{ tools is none }} {{ documents is none }} {{ eos_token }}") == "True True "


def test_reasoning_is_found_under_each_name() -> None:
    source = "{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}"
    for name in ("reasoning", "thinking", "reasoning_content"):
        assert render(source, [{"role": "assistant", "content": "x", name: "why"}]) == "why|why"


def test_null_fields_are_absent() -> None:
    message = {"role": "assistant", "content": "x", "tool_calls": None}
    assert render("{{ messages[0].tool_calls is defined }}", [message]) == "False"


def test_values_become_plain() -> None:
    class Loud(str):
        def __str__(self) -> str:
            return "LOUD"

    found = render(
        "{{ a }} {{ b + 1 }} {{ c }} {{ d }}",
        variables={"a": Loud("x"), "b": np.int64(2), "c": object(), "d": np.zeros(2)},
    )
    assert found == "x 3 <object> <ndarray>"


def test_the_final_message_is_continued() -> None:
    chat = [*USER, {"role": "assistant", "content": "Well, "}]
    kept = render(CHATML, chat, continue_final_message=True)
    assert kept.endswith("<|im_start|>assistant\nWell, ")
    trimmed = CHATML.replace("m['content']", "m['content'] | trim")
    assert render(trimmed, chat, continue_final_message=True).endswith("\nWell,")
    parts = [{"role": "user", "content": [{"type": "text", "text": "Once"}]}]
    source = "<{{ messages[0].content[0].text }}>"
    assert render(source, parts, continue_final_message=True) == "<Once"
    assert parts[0]["content"][0]["text"] == "Once"  # type: ignore[index]


def test_the_final_message_must_be_there_to_be_continued() -> None:
    with pytest.raises(ChatTemplateError, match="expected the final message"):
        render("nothing", USER, continue_final_message=True)
    with pytest.raises(ArgumentError, match="text to continue, found none"):
        render(CHATML, [{"role": "user", "tool_calls": []}], continue_final_message=True)
    with pytest.raises(ArgumentError, match="found both"):
        render(CHATML, USER, continue_final_message=True, add_generation_prompt=True)


# ---- which template ----


def test_a_file_can_have_several() -> None:
    metadata = {
        "tokenizer.chat_template": "plain",
        "tokenizer.chat_template.tool_use": "tools",
        "tokenizer.chat_template.rag": "rag",
        "tokenizer.chat_templates": ["rag", "tool_use"],
    }
    templates = ChatTemplates(metadata)
    assert templates.names == ["default", "rag", "tool_use"]
    assert templates.choose().source == "plain"
    assert templates.choose(tools=True).source == "tools"
    assert templates.choose("rag", tools=True).source == "rag"
    assert templates.choose("{{ x }}").source == "{{ x }}"
    assert templates.choose() is templates.choose()  # compiled once
    with pytest.raises(ArgumentError, match=r"the file's \(default, rag, tool_use\), found 'rga'"):
        templates.choose("rga")
    with pytest.raises(ArgumentError, match="expected str, found int"):
        templates.choose(3)  # type: ignore[arg-type]


def test_a_file_without_one_says_what_to_pass() -> None:
    with pytest.raises(ChatTemplateError, match=r"found none; pass one with template=.*FILE"):
        ChatTemplates({}).choose()
    with pytest.raises(ChatTemplateError, match="found only rag"):
        ChatTemplates({"tokenizer.chat_template.rag": "x"}).choose()
    with pytest.raises(ChatTemplateError, match="default: expected a string, found int"):
        ChatTemplates({"tokenizer.chat_template": 3}).choose()


# ---- broken and hostile ones ----


@pytest.mark.parametrize(
    ("source", "line", "cause"),
    [
        ("\n{% if %}", 2, "Expected an expression"),
        ("\n\n{{ raise_exception('no ' + messages[0].role) }}", 3, "no user"),
        ("{{ x.y.z }}", 1, "'x' is undefined"),
        ("{{ 1 + 'a' }}", 1, "TypeError: unsupported operand"),
        ("a\n{{ [].append(1) }}", 2, "is not safely callable|unsafe"),
        ("{{ ''.__class__.__mro__ }}", 1, "unsafe"),
        ("{{ messages.__class__ }}{{ (1).__class__() }}", 1, "unsafe"),
        ("{{ namespace(_x=1) }}", 1, "begin with no underscore, found '_x'"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", 1, "underscore"),
        ("{% include 'x' %}", 1, "no loader"),
        ("{% nonsense %}", 1, "unknown tag"),
        ("{{ '%d' | format('x') }}", 1, "TypeError"),
    ],
)
def test_an_error_names_template_line_and_cause(source: str, line: int, cause: str) -> None:
    template = ChatTemplate(source, "mine")  # nothing fails before it is used
    with pytest.raises(ChatTemplateError, match=cause) as caught:
        template.render(USER)
    assert str(caught.value).startswith(f"chat template mine, line {line}: ")


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in [[1]] * 64 recursive %}{{ loop([[1]] * 64) }}{% endfor %}",
        "{{ 'x' * 10000000000 }}",
        "{{ 10000000000 * 'x' }}",
        "{{ [1] * 10000000000 }}",
        "{{ 9 ** 999999999 }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}"
        "{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}"
        "{% endfor %}",
        "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}"
        "{% endfor %}",
        "{{ 'x'.center(10000000000) }}",
        "{{ 'x' | center(10000000000) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (9999999999, 1) }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ '{:9999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 9999999999) }}",
        "{{ ('x' * 60000).replace('x', 'y' * 60000) }}",
        "{{ ('x' * 60000) | replace('x', 'y' * 60000) }}",
        "{{ ('x' * 60000).join(['y'] * 60000) }}",
        "{{ (['y'] * 60000) | join('x' * 60000) }}",
        "{{ ('\\n' * 60000) | indent(60000) }}",
        "{{ ('\\t' * 60000).expandtabs(60000) }}",
        "{{ {'a': [1]} | tojson(indent=9999999999) }}",
        "{{ range(9999999999) | list }}",
        "{{ lipsum(9999999999) }}",
        "{{ 1 | round(9999999999, 'ceil') }}",
        "{{ 1 | round(-9999999999) }}",
        "{% set x = 'x' * 60000000 %}{% for i in range(99) %}{{ x }}{% endfor %}",
        "{% macro f() %}{% for i in range(99) %}{{ 'x' * 6000000 }}{% endfor %}{% endmacro %}"
        "{% set x = f() %}",
        "{{ ([[1] * 1000] * 100000) | sum(start=[]) | length }}",
        "{{ (['x' * 6000000] * 99) | join | length }}",
        "{{ ''.join(['x' * 6000000] * 99) | length }}",
        "{{ ('{0}' * 99).format('x' * 6000000) | length }}",
        "{{ ('%s' * 99) | format(*(['x' * 6000000] * 99)) | length }}",
        "{% set x = 'x' * 30000000 %}{{ ('%s%s%s' % (x, x, x)) | length }}",
        "{{ 'x'.encode().center(10000000000) }}",
        "{{ (1).to_bytes(10000000000) }}",
        "{{ " + "(" * 400 + "1" + ")" * 400 + " }}",
        "{{ " + "[" * 4000 + "]" * 4000 + " }}",
    ],
)
def test_endless_and_huge_ones_end(source: str) -> None:
    started = time.monotonic()
    with pytest.raises(ChatTemplateError, match="chat template test") as caught:
        render(source)
    assert "MemoryError" not in str(caught.value)  # refused beforehand, not by the system
    assert time.monotonic() - started < 20


def test_bounds_do_not_touch_ordinary_work() -> None:
    source = (
        "{% for m in messages %}{{ m.content.replace('a', 'bb').center(9) | indent(2) }}"
        "{{ '%02d' % loop.index }}{{ '{:>3}'.format(1700000000) }}{{ 'ab' * 2 }}{{ 3 * 4 ** 2 }}"
        "{{ ['x', 'y'] | join('-') }}{{ 'a' ~ 1 ~ none }}{{ 2.46 | round(1) }}"
        "{{ [[1], [2]] | sum(start=[]) }}{{ [1, 2] | sum }}{% endfor %}"
    )
    chat = [{"role": "user", "content": "banana"}] * 2000
    assert render(source, chat).startswith("bbbnbbnbb01170000000" + "0abab48x-ya1None2.5[1, 2]3")


def test_a_template_cannot_change_the_messages() -> None:
    with pytest.raises(ChatTemplateError):
        render("{{ messages.append(1) }}")
    with pytest.raises(ChatTemplateError):
        render("{{ messages[0].update(role='x') }}")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="{}%-# abfor.in|()[]'\"0129=\n_<>", max_size=60))
def test_any_template_gives_text_or_the_typed_error(source: str) -> None:
    try:
        assert isinstance(render(source), str)
    except ChatTemplateError as error:
        assert re.match(r"chat template test(, line \d+)?: ", str(error))
