"""A chat model's raw output taken apart: reasoning, answer, tool calls.

Text comes in pieces and goes out as soon as it is certain what it is; how it was cut makes no
difference. What looks like a tool call but is none is text, and nothing here raises for
anything that a model writes.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NoReturn, Protocol

Kind = Literal["reasoning", "answer"]
Piece = tuple[Kind, str]
Functions = Mapping[str, Mapping[str, Any]]

# What surrounds reasoning, by what begins it.
REASONING = {
    "<think>": "</think>",
    "[THINK]": "[/THINK]",
    "<seed:think>": "</seed:think>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|channel>thought": "<channel|>",
}
# What surrounds one or several tool calls; None: everything up to the end.
_CALLS = {
    "<tool_call>": "</tool_call>",
    "[TOOL_CALLS]": None,
    "<|python_tag|>": None,
    "<|tool_call>": "<tool_call|>",
}
_GEMMA_QUOTE = '<|"|>'
_HARMONY_BEGINS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "to=")
_HARMONY_ENDS = ("<|end|>", "<|start|>", "<|call|>", "<|return|>")

# Llama's names for a tool that takes a program.
_PROGRAM_TOOLS = ("python", "ipython", "code_interpreter")
# More than this is no call of a function in Python's notation.
_MAX_PROGRAM = 10_000


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants called.

    Attributes:
        name: The function; not checked to be one of the tools that were given.
        arguments: By parameter; not checked against a schema.
        id: What the model calls the call, or None.
    """

    name: str
    arguments: dict[str, Any]
    id: str | None = None


class Parser(Protocol):
    """What both notations offer.

    Attributes:
        markup: Names of control tokens that must stay in the text, since they take it apart.
        calls: The calls so far.
    """

    markup: ClassVar[frozenset[str]]
    calls: list[ToolCall]

    def feed(self, text: str) -> Iterator[Piece]:
        """Takes text; gives what is certain."""
        ...

    def finish(self) -> Iterator[Piece]:
        """Ends the text; gives the rest."""
        ...


def parser_for(prompt: str, functions: Functions) -> Parser:
    """The parser of what follows a prompt.

    Args:
        prompt: A template may have begun the reasoning itself, at the end of the prompt.
        functions: Properties of each tool's parameters by the tool's name.
    """
    tail = prompt.rstrip()
    if "<|start|>" in prompt and "<|message|>" in prompt:
        return _HarmonyParser()
    opened = next((end for begin, end in REASONING.items() if tail.endswith(begin)), None)
    return _TagParser(functions, opened)


class _TagParser:
    """Reasoning and calls between tags, as most models write them."""

    markup: ClassVar[frozenset[str]] = frozenset(
        {*REASONING, *REASONING.values(), *_CALLS, *(end for end in _CALLS.values() if end)}
        | {"[ARGS]", "[CALL_ID]", "<|channel>", _GEMMA_QUOTE}
    )

    def __init__(self, functions: Functions, reasoning_end: str | None) -> None:
        self.calls: list[ToolCall] = []
        self._functions = functions
        self._state = "begin" if reasoning_end is None else "reasoning"
        self._end: str | None = reasoning_end
        self._opener = ""
        self._held = ""
        self._after_markup = False  # spaces between markup and answer belong to neither
        self._reasoned = False  # some of the reasoning is out

    def feed(self, text: str) -> Iterator[Piece]:
        self._held += text
        while True:
            state = self._state
            yield from getattr(self, f"_in_{state}")()
            if self._state == state:
                return

    def finish(self) -> Iterator[Piece]:
        held, self._held = self._held, ""
        if self._state == "reasoning":
            if held.strip():
                yield "reasoning", held.rstrip() if self._reasoned else held.strip()
        elif self._state == "call":
            # The end tag may be missing where the end token came instead of it.
            calls = self._parse(held)
            self.calls += calls or []
            if not calls:
                yield "answer", self._opener + held
        elif held and not (self._after_markup and not held.strip()):
            yield "answer", held
        self._state = "done"

    def _in_begin(self) -> Iterator[Piece]:
        lead = self._held.lstrip()
        for begin, end in REASONING.items():
            if lead.startswith(begin):
                self._held, self._state, self._end = lead[len(begin) :], "reasoning", end
                self._reasoned = False
                return
        if not lead or any(begin.startswith(lead) for begin in REASONING):
            return
        self._held = lead if self._after_markup else self._held
        self._state = "answer"
        if lead[0] == "{" and self._functions:
            space = self._held[: len(self._held) - len(lead)]
            self._opener, self._held, self._end, self._state = space, lead, None, "call"
        yield from ()

    def _in_reasoning(self) -> Iterator[Piece]:
        assert self._end is not None
        held = self._held if self._reasoned else self._held.lstrip()
        inside, found, rest = held.partition(self._end)
        if found:
            if inside.rstrip():
                yield "reasoning", inside.rstrip()
            self._held, self._state, self._after_markup = rest, "begin", True
            return
        out = _certain(held, (self._end,))
        if out:
            self._reasoned = True
            yield "reasoning", out
        self._held = held[len(out) :]

    def _in_answer(self) -> Iterator[Piece]:
        found = [(at, tag) for tag in _CALLS if (at := self._held.find(tag)) >= 0]
        if found:
            at, tag = min(found)
            out = self._held[:at].rstrip()
            self._opener = self._held[len(out) : at] + tag
            self._held = self._held[at + len(tag) :]
            self._end, self._state = _CALLS[tag], "call"
        else:
            out = _certain(self._held, _CALLS)
            self._held = self._held[len(out) :]
        if out:
            self._after_markup = False
            yield "answer", out

    def _in_call(self) -> Iterator[Piece]:
        if self._end is None:
            return
        inside, found, rest = self._held.partition(self._end)
        if not found:
            return
        calls = self._parse(inside)
        self._held = rest
        if calls:
            self.calls += calls
            self._after_markup, self._state = True, "between"
        else:
            self._state = "answer"
            yield "answer", self._opener + inside + found

    def _in_between(self) -> Iterator[Piece]:
        self._held = self._held.lstrip()
        if self._held:
            self._state = "answer"
        yield from ()

    def _in_done(self) -> Iterator[Piece]:
        yield from ()

    def _parse(self, text: str) -> list[ToolCall] | None:
        text = text.strip()
        if self._opener.endswith("<tool_call>"):
            return _tagged_call(text, self._functions)
        if self._opener.endswith("[TOOL_CALLS]"):
            return _mistral_calls(text)
        if self._opener.endswith("<|tool_call>"):
            return _gemma_call(text)
        if self._opener.endswith("<|python_tag|>"):
            return _json_calls(text, None) or _program_call(text, self._functions)
        return _json_calls(text, self._functions)


class _HarmonyParser:
    """The notation of gpt-oss: messages in channels."""

    markup: ClassVar[frozenset[str]] = frozenset({*_HARMONY_BEGINS, *_HARMONY_ENDS})

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        self._held = ""
        self._kind: Kind | None = "answer"
        self._recipient = ""
        self._in_header = True
        self._header_text = ""

    def feed(self, text: str) -> Iterator[Piece]:
        self._held += text
        while self._held:
            before = (self._held, self._in_header)
            yield from self._header() if self._in_header else self._body()
            if before == (self._held, self._in_header):
                return

    def finish(self) -> Iterator[Piece]:
        held, self._held = self._held, ""
        if self._in_header:
            if held.strip() and not held.lstrip().startswith(_HARMONY_BEGINS):
                yield "answer", held
        else:
            yield from self._end_message(held)

    def _header(self) -> Iterator[Piece]:
        lead = self._held.lstrip()
        if lead and not any(b.startswith(lead) or lead.startswith(b) for b in _HARMONY_BEGINS):
            self._kind, self._recipient, self._in_header = "answer", "", False
            return
        header, found, rest = self._held.partition("<|message|>")
        if not found:
            return
        channel = re.search(r"<\|channel\|>\s*(\w+)", header)
        recipient = re.search(r"to=([^\s<]+)", header)
        self._recipient = recipient[1] if recipient else ""
        self._kind = "reasoning" if channel and channel[1] == "analysis" else "answer"
        if self._recipient:
            self._kind = None
        self._header_text = header + found
        self._held, self._in_header = rest, False
        yield from ()

    def _body(self) -> Iterator[Piece]:
        found = [(at, tag) for tag in _HARMONY_ENDS if (at := self._held.find(tag)) >= 0]
        if found:
            at, tag = min(found)
            inside, self._held = self._held[:at], self._held[at:]
            if tag != "<|start|>":  # which begins the next header
                self._held = self._held.removeprefix(tag)
            self._in_header = True
            yield from self._end_message(inside)
        elif self._kind is not None:
            out = _certain(self._held, _HARMONY_ENDS)
            self._held = self._held[len(out) :]
            if out:
                yield self._kind, out

    def _end_message(self, text: str) -> Iterator[Piece]:
        if self._kind is not None:
            if text:
                yield self._kind, text
            return
        arguments = _json(text)
        if isinstance(arguments, dict):
            self.calls.append(ToolCall(self._recipient.removeprefix("functions."), arguments))
        elif text:
            yield "answer", self._header_text + text
        self._kind = "answer"


def _certain(text: str, tags: Mapping[str, Any] | tuple[str, ...]) -> str:
    """The text without an end that may begin a tag, and without spaces before that end."""
    keep = 0
    for tag in tags:
        for length in range(min(len(text), len(tag) - 1), keep, -1):
            if text.endswith(tag[:length]):
                keep = length
                break
    return text[: len(text) - keep].rstrip()


# ---- notations of a call ----


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_constant)


def _json(text: str) -> Any:
    """The value of a JSON text; None for what is none."""
    try:
        return json.loads(text, parse_constant=_constant)
    except (ValueError, RecursionError):
        return None


def _call(value: Any, *, need_arguments: bool = False) -> ToolCall | None:
    """A call out of the objects in which models write one."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = {"id": value.get("id"), **value["function"]}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    key = next((k for k in ("arguments", "parameters") if k in value), None)
    if key is None and need_arguments:
        return None
    arguments = value[key] if key is not None else {}
    if isinstance(arguments, str):
        arguments = _json(arguments)
    if not isinstance(arguments, dict):
        return None
    name = value.get("id")
    return ToolCall(value["name"], arguments, name if isinstance(name, str) else None)


def _json_calls(text: str, functions: Functions | None) -> list[ToolCall] | None:
    """Objects, side by side or divided by semicolons; with functions, calls of these only."""
    calls: list[ToolCall] = []
    at = 0
    while at < len(text):
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        call = _call(value, need_arguments=True)
        if call is None or (functions is not None and call.name not in functions):
            return None
        calls.append(call)
        while at < len(text) and text[at] in "; \n\r\t":
            at += 1
    return calls or None


def _mistral_calls(text: str) -> list[ToolCall] | None:
    """An array of objects, or names and arguments: ``name[CALL_ID]id[ARGS]{...}``."""
    values = _json(text)
    if isinstance(values, list):
        calls = [_call(value) for value in values]
        return [call for call in calls if call] if calls and all(calls) else None
    found: list[ToolCall] = []
    for part in text.split("[TOOL_CALLS]"):
        match = re.fullmatch(
            r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*(\w+)\s*)?(?:\[ARGS\])?\s*(\{.*\})\s*",
            part,
            re.DOTALL,
        )
        arguments = _json(match[3]) if match else None
        if match is None or not isinstance(arguments, dict):
            return None
        found.append(ToolCall(match[1], arguments, match[2]))
    return found


def _tagged_call(text: str, functions: Functions) -> list[ToolCall] | None:
    """JSON (Hermes, Qwen), or a name and parameters in tags (Qwen3-Coder, GLM)."""
    if text.startswith(("{", "[")):
        value = _json(text)
        calls = [_call(item) for item in (value if isinstance(value, list) else [value])]
        return [call for call in calls if call] if calls and all(calls) else None
    coder = re.fullmatch(r"<function=([^>\s]+)>(.*?)(?:</function>)?", text, re.DOTALL)
    glm = re.fullmatch(r"([\w.-]+)\s*((?:<arg_key>.*)?)", text, re.DOTALL)
    if coder:
        name, pattern = coder[1], r"<parameter=([^>\s]+)>(.*?)</parameter>"
        body = coder[2]
    elif glm:
        name, pattern = glm[1], r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>"
        body = glm[2]
        if not body and name not in functions:
            return None
    else:
        return None
    if re.sub(pattern, "", body, flags=re.DOTALL).strip():
        return None
    properties = functions.get(name, {})
    arguments = {
        key.strip(): _tagged_value(value, properties.get(key.strip()), trim=coder is not None)
        for key, value in re.findall(pattern, body, re.DOTALL)
    }
    return [ToolCall(name, arguments)]


def _tagged_value(text: str, schema: object, *, trim: bool) -> Any:
    """A parameter between tags: text, unless its schema asks for something else."""
    if trim:  # Qwen3-Coder writes the value on lines of its own
        text = text.removeprefix("\n").removesuffix("\n")
    kind = schema.get("type") if isinstance(schema, Mapping) else "string"
    if kind == "string":
        return text
    value = _json(text.strip())
    return text if value is None and text.strip() != "null" else value


def _gemma_call(text: str) -> list[ToolCall] | None:
    """``call:name{key:<|"|>text<|"|>,other:3}``, JSON but for its quotes."""
    match = re.fullmatch(r"call:([\w.-]+)(\{.*\})", text, re.DOTALL)
    if match is None:
        return None
    parts = match[2].split(_GEMMA_QUOTE)
    for i, part in enumerate(parts):
        # Every other part is a text.
        bare = re.sub(r'([{,]\s*)([^\s{}\[\],:"]+)\s*:', r'\1"\2":', part)
        parts[i] = json.dumps(part) if i % 2 else bare
    arguments = _json("".join(parts)) if len(parts) % 2 else None
    return [ToolCall(match[1], arguments)] if isinstance(arguments, dict) else None


def _program_call(text: str, functions: Functions) -> list[ToolCall] | None:
    """``tool.call(query="...")`` of Llama's built-in tools, or a program for one."""
    if not text or len(text) > _MAX_PROGRAM:
        return None
    try:
        node: Any = ast.parse(text, mode="eval").body
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args:
            target = node.func.value
            if node.func.attr == "call" and isinstance(target, ast.Name):
                arguments = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords if k.arg}
                return [ToolCall(target.id, arguments)]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass  # a program, or nothing known
    name = next((name for name in _PROGRAM_TOOLS if name in functions), None)
    return None if name is None else [ToolCall(name, {"code": text})]
