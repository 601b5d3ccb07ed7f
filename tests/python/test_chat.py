"""Chats in Python: turns of scripted models, and what callers may pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import END, Shape, chain, random_model

from pyengine import (
    ArgumentError,
    ChatTemplateError,
    ContextFullError,
    Engine,
    ToolCall,
)
from pyengine._messages import checked_messages, function_schema, tool_schemas

USER = [{"role": "user", "content": "Hi"}]
TEMPLATE = "{{ bos_token }}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {}}},
}

Scripted = Callable[..., Engine]


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Scripted]:
    """Opens an engine that recites pieces; those in control are control tokens."""
    opened: list[Engine] = []

    def make(*pieces: str, control: tuple[str, ...] = (), template: str = TEMPLATE) -> Engine:
        model = chain([piece.encode() for piece in pieces])
        model.metadata["tokenizer.chat_template"] = template
        types = model.metadata["tokenizer.ggml.token_type"]
        tokens = model.metadata["tokenizer.ggml.tokens"]
        for name in control:
            types[tokens.index(name)] = 3
        path = model.save(tmp_path / f"{len(opened)}.gguf")
        opened.append(Engine(path, n_threads=1))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with random weights and a template whose end of turn is no token."""
    model = random_model(Shape(context=1024))
    model.metadata["tokenizer.chat_template"] = CHATML
    path = model.save(tmp_path_factory.mktemp("chat") / "chatml.gguf")
    with Engine(path, n_threads=1) as engine:
        yield engine


def test_a_turn_gives_an_answer_and_a_message(scripted: Scripted) -> None:
    reply = scripted("Hel", "lo", "!").chat(USER)
    assert (reply.text, reply.reasoning, reply.tool_calls) == ("Hello!", None, [])
    assert reply.finish_reason == "eos"
    assert reply.usage.prompt_tokens == 1
    assert reply.message == {"role": "assistant", "content": "Hello!"}


def test_reasoning_stands_apart_and_streams_as_events(scripted: Scripted) -> None:
    engine = scripted("<think>", "because", "</think>", "Yes", ".", control=("<think>", "</think>"))
    reply = engine.chat(USER)
    assert (reply.reasoning, reply.text) == ("because", "Yes.")
    assert reply.message["reasoning_content"] == "because"
    stream = engine.chat(USER, stream=True)
    assert list(stream) == ["Yes", "."]
    assert stream.result.reasoning == "because"
    events = list(engine.chat(USER, stream=True).events())
    assert events == [("reasoning", "because"), ("answer", "Yes"), ("answer", ".")]


def test_tool_calls_are_parsed_even_from_control_tokens(scripted: Scripted) -> None:
    engine = scripted(
        "Wait", "[TOOL_CALLS]", "f", "[ARGS]", '{"a": 1}', control=("[TOOL_CALLS]", "[ARGS]")
    )
    reply = engine.chat(USER, tools=[TOOL])
    assert reply.text == "Wait"
    assert reply.tool_calls == [ToolCall("f", {"a": 1})]
    call = reply.message["tool_calls"][0]
    assert call["function"] == {"name": "f", "arguments": {"a": 1}}
    assert len(call["id"]) == 9


def test_control_tokens_that_mean_nothing_here_stay_out(scripted: Scripted) -> None:
    assert scripted("a", "<|x|>", "b", control=("<|x|>",)).chat(USER).text == "ab"


def test_a_malformed_call_is_text(scripted: Scripted) -> None:
    reply = scripted("<tool_call>", "{no", "</tool_call>").chat(USER, tools=[TOOL])
    assert (reply.text, reply.tool_calls) == ("<tool_call>{no</tool_call>", [])


def test_an_end_token_of_the_template_ends_the_turn(scripted: Scripted) -> None:
    # Not named by the file, and of a name that nobody knows.
    engine = scripted("a", "<|fin|>", "b", control=("<|fin|>",))
    assert engine.chat(USER).text == "ab"
    answers = TEMPLATE + "{% for m in messages if m.role == 'assistant' %}{{ m.content }} \n<|fin|>"
    reply = engine.chat(USER, template=answers + "{% endfor %}")
    assert (reply.text, reply.finish_reason) == ("a", "eos")


def test_an_end_that_is_no_token_ends_the_turn_as_text(scripted: Scripted) -> None:
    engine = scripted("Hi", "<|im", "_end|>", "more", template=TEMPLATE + "{# <|im_end|> #}")
    reply = engine.chat(USER)
    assert (reply.text, reply.finish_reason) == ("Hi", "stop")
    assert engine.chat(USER, stop="H").text == ""
    assert engine.chat(USER, stop=["i"]).text == "H"


def test_options_reach_the_generation(scripted: Scripted) -> None:
    engine = scripted("a", "b", "c", "d")
    assert engine.chat(USER, max_tokens=2).text == "ab"
    assert engine.chat(USER, stop=["cd"]).text == "ab"
    reply = engine.chat(USER, seed=3, logprobs=1, ignore_eos=True, max_tokens=6)
    assert reply.seed == 3
    assert reply.logprobs is not None and len(reply.logprobs) == 6
    with pytest.raises(ArgumentError, match="top_p: expected"):
        engine.chat(USER, top_p=2)


def test_variables_and_templates_reach_the_prompt(scripted: Scripted) -> None:
    engine = scripted("x", template="{{ 1 / 0 }}")
    choose = "{{ bos_token }}{% if not enable_thinking %}{{ raise_exception('off') }}{% endif %}"
    assert engine.chat(USER, template=choose, enable_thinking=True).text == "x"
    with pytest.raises(ChatTemplateError, match="off"):
        engine.chat(USER, template=choose, enable_thinking=False)
    with pytest.raises(ChatTemplateError, match="default, line 1: ZeroDivisionError"):
        engine.chat(USER)
    assert engine.generate([0]).text == "x"  # a broken template is nobody else's business


def test_closing_a_stream_keeps_what_there_was(scripted: Scripted) -> None:
    stream = scripted("one", " two", " three").chat(USER, stream=True)
    assert next(stream) == "one"
    stream.close()
    assert stream.result.finish_reason == "cancelled"
    assert "one two three".startswith(stream.result.text)
    assert list(stream) == []


def test_no_second_begin_token(chatml: Engine) -> None:
    bos = chatml.tokenizer.bos_id
    template = "{{ bos_token }}{{ messages[0].content }}"
    with chatml.session() as session:
        chatml.chat(USER, template=template, session=session, max_tokens=1)
        assert session.tokens[:2].count(bos) == 1
        assert session.tokens == chatml.tokenize("Hi")
        chatml.chat(USER, session=session, max_tokens=1)
        assert bos not in session.tokens


def test_a_session_computes_only_what_is_new(chatml: Engine) -> None:
    chat = [*USER]
    options: dict[str, Any] = {"max_tokens": 8, "seed": 1, "ignore_eos": True}
    with chatml.session() as session:
        for turn in range(3):
            held = session.n_tokens
            reply = chatml.chat(chat, session=session, **options)
            fresh = chatml.chat(chat, **options)
            assert (reply.text, reply.tokens) == (fresh.text, fresh.tokens)
            if turn:
                assert reply.timings.n_prefill <= reply.usage.prompt_tokens - held + 8
            chat += [reply.message, {"role": "user", "content": f"the {turn}"}]
        # The same prompt again: one token, for its logits.
        again = chatml.chat(chat, session=session, **options)
        again = chatml.chat(chat, session=session, **options)
        assert again.timings.n_prefill == 1
        assert again.tokens == chatml.chat(chat, **options).tokens
        # Another beginning: everything behind the common part is dropped.
        other = [{"role": "user", "content": "Hello there"}]
        assert chatml.chat(other, session=session, **options).tokens == (
            chatml.chat(other, **options).tokens
        )


def test_a_session_of_another_engine_is_refused(chatml: Engine, engine: Engine) -> None:
    with engine.session() as session, pytest.raises(ArgumentError, match="another engine's"):
        chatml.chat(USER, session=session)
    with pytest.raises(ArgumentError, match="session: expected a Session, found int"):
        chatml.chat(USER, session=3)


def test_a_chat_that_does_not_fit_is_refused_whole(chatml: Engine) -> None:
    with pytest.raises(ContextFullError, match="expected at most 1024 tokens"):
        chatml.chat([{"role": "user", "content": "word " * 300}])


def test_a_file_without_a_template_needs_one(engine: Engine) -> None:
    with pytest.raises(ChatTemplateError, match="found none; pass one with template="):
        engine.chat(USER)
    assert engine.chat(USER, template=CHATML, max_tokens=2).tokens
    assert engine.chat_templates.names == []


def test_continuing_the_last_message(chatml: Engine) -> None:
    chat = [*USER, {"role": "assistant", "content": "the"}]
    with chatml.session() as session:
        chatml.chat(chat, continue_final_message=True, session=session, max_tokens=1)
        assert chatml.detokenize(session.tokens).endswith("assistant\nthe")


# ---- what callers pass ----


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ("Hi", "messages: expected a list such as .* found str"),
        ({"role": "user"}, "messages: expected a list such as .* found dict"),
        ([], "messages: expected 1 message or more, found none"),
        (["Hi"], r"messages\[0\]: expected a mapping with role and content, found str"),
        ([*USER, {"content": "x"}], r"messages\[1\].role: expected a name .* found None"),
        ([{"role": "user"}], r"messages\[0\]: expected content or tool_calls, found neither"),
        ([{"role": "user", "content": 3}], r"messages\[0\].content: expected text .* found int"),
        ([{"role": "user", "content": {}}], r"messages\[0\].content: .* found a mapping"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\].content\[0\]: expected a part"),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            r"messages\[0\].content\[0\].text: expected text, found None",
        ),
        ([{"role": "assistant", "tool_calls": 3}], r"tool_calls: expected a list, found int"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {}}]}],
            r"messages\[0\].tool_calls\[0\]: expected a mapping with a function's name",
        ),
    ],
)
def test_wrong_messages_are_named(messages: object, expected: str) -> None:
    with pytest.raises(ArgumentError, match=expected):
        checked_messages(messages)


def no_docstring(x: int) -> None:
    raise NotImplementedError


def no_hint(x) -> None:  # type: ignore[no-untyped-def]
    """F.

    Args:
        x: X
    """


def no_description(x: int) -> None:
    """F."""


def odd_type(x: Engine) -> None:
    """F.

    Args:
        x: X
    """


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ("f", "tools: expected a list of functions or JSON schemas, found str"),
        ([3], r"tools\[0\]: expected a function or a JSON schema, found int"),
        ([TOOL, {"function": {}}], r"tools\[1\]: expected a JSON schema that names a function"),
        ([no_docstring], r"tools\[0\], function no_docstring: expected a docstring, found none"),
        ([no_hint], "expected a type hint of x, found none"),
        ([no_description], "expected x in the docstring's Args"),
        ([odd_type], "parameter x: expected a type that JSON knows, found"),
    ],
)
def test_wrong_tools_are_named(tools: object, expected: str) -> None:
    with pytest.raises(ArgumentError, match=expected):
        tool_schemas(tools)


def test_functions_become_schemas() -> None:
    def weather(city: str, days: int | None = None) -> str:
        """Tells the weather.

        Args:
            city: Where
            days: How many
        """
        raise NotImplementedError

    assert function_schema(weather) == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Where"},
                    "days": {"type": "integer", "nullable": True, "description": "How many"},
                },
                "required": ["city"],
            },
            "return": {"type": "string"},
        },
    }


def test_what_chat_sets_itself_is_not_taken(chatml: Engine) -> None:
    with pytest.raises(ArgumentError, match="add_generation_prompt: expected continue_final"):
        chatml.chat(USER, add_generation_prompt=False)


def test_documents_are_checked(chatml: Engine) -> None:
    with pytest.raises(ArgumentError, match=r"documents\[0\]: expected a mapping"):
        chatml.chat(USER, documents=["x"])
    with pytest.raises(ArgumentError, match="documents: expected a list, found str"):
        chatml.chat(USER, documents="x")


def test_the_end_token_of_the_file_is_known(scripted: Scripted) -> None:
    assert scripted("a").tokenizer.special_tokens == {
        "bos_token": "<|start|>",
        "eos_token": END,
    }
