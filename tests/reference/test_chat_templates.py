"""Chat templates render as transformers renders them.

PYENGINE_TEMPLATES names a folder of published templates (``*.jinja``), such as
``vendor/llama.cpp/models/templates`` of llama-cpp-python's source archive.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import pytest
import tokenizers
import transformers
from transformers.utils import get_json_schema

from pyengine import ChatTemplate, PyengineError
from pyengine._messages import function_schema

TEMPLATES = os.environ.get("PYENGINE_TEMPLATES")
FILES = sorted(Path(TEMPLATES).glob("*.jinja")) if TEMPLATES else []

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Wetter <b>&'\" in a place",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where"},
                "days": {"type": "integer"},
            },
            "required": ["city"],
        },
    },
}
USER = {"role": "user", "content": "Hi <there> \u00e9"}
CALL = {
    "id": "123456789",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "K\u00f6ln", "days": 2}},
}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}
CHATS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "one": ([USER], {}),
    "no prompt": ([USER], {"add_generation_prompt": False}),
    "two": ([{"role": "system", "content": "Be brief."}, USER, THOUGHT, USER], {}),
    "reasoning": ([USER, {"role": "assistant", "content": "Yes", "reasoning": "why"}, USER], {}),
    "tools": ([USER], {"tools": [WEATHER]}),
    "calls": (
        [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "123456789", "name": "get_weather", "content": "3"},
        ],
        {"tools": [WEATHER]},
    ),
    "no thinking": ([USER], {"enable_thinking": False}),
    "documents": ([USER], {"documents": [{"title": "T", "text": "X"}]}),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], {}),
    "continued": (
        [USER, {"role": "assistant", "content": "Well "}],
        {"continue_final_message": True, "add_generation_prompt": False},
    ),
}
OWN = ("tools", "documents", "add_generation_prompt", "continue_final_message")


@pytest.fixture(scope="module")
def reference() -> Any:
    empty = tokenizers.Tokenizer(tokenizers.models.BPE())
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=empty, bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.skipif(not FILES, reason="PYENGINE_TEMPLATES names no folder of templates")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_equal_to_transformers(reference: Any, path: Path) -> None:
    source = path.read_text("utf-8")
    n_equal = 0
    for name, (messages, changes) in CHATS.items():
        options: dict[str, Any] = {"add_generation_prompt": True} | changes
        own = {key: options[key] for key in OWN if key in options}
        rest = {key: value for key, value in options.items() if key not in OWN}
        try:
            expected = reference.apply_chat_template(
                messages, chat_template=source, tokenize=False, **options
            )
        except Exception:
            with pytest.raises(PyengineError):
                render(source, messages, own, reference.special_tokens_map | rest)
            continue
        found = render(source, messages, own, reference.special_tokens_map | rest)
        assert found == expected, name
        n_equal += 1
    if n_equal == 0:
        pytest.skip("transformers renders none of the chats with it")


def render(
    source: str, messages: list[dict[str, Any]], own: dict[str, Any], variables: dict[str, Any]
) -> str:
    return ChatTemplate(source, "published").render(messages, **own, variables=variables)


def simple(city: str, days: int = 3, kind: Literal["rain", "snow"] = "rain") -> list[str]:
    """Tells the weather
    of a place.

    Args:
        city: Where,
            in any language
        days (int, *optional*): How many
        kind: Which one

    Returns:
        One line a day
    """
    raise NotImplementedError


def rich(
    a: list[dict[str, float]], b: int | None, c: str | int, d: list[int] | str, e: tuple[int, str]
) -> None:
    """Everything.

    Args:
        a: One
        b: Two
        c: Three
        d: Four
        e: Five
    """


@pytest.mark.parametrize("function", [simple, rich])
def test_functions_become_the_same_schemas(function: Any) -> None:
    assert function_schema(function) == get_json_schema(function)
