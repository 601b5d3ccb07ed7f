"""One turn of a chat: messages to a prompt, the model's output to an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyengine._arguments import instance
from pyengine._errors import ArgumentError, ChatTemplateError, TokenizerError
from pyengine._generate import Generation, Stream, Turn
from pyengine._messages import checked_messages, tool_functions, tool_schemas
from pyengine._native import Handle
from pyengine._reply import Parser, Piece, ToolCall, parser_for
from pyengine._self_test import check_rendering
from pyengine._session import Session
from pyengine._template import ChatTemplate
from pyengine._tokenizer import END_NAMES, Tokenizer

if TYPE_CHECKING:
    from pyengine._engine import Engine

# What chat gives to the template itself; continue_final_message turns it off.
_RESERVED = "add_generation_prompt"

# Stands for an answer where the end of turn is looked for; no template changes it.
_PROBE = "PYENGINE0ANSWER"


@dataclass(frozen=True, slots=True)
class ChatReply(Generation):
    """What a turn gave; ``text`` is the answer alone.

    Attributes:
        reasoning: What the model wrote before answering, if it does so; else None.
        tool_calls: Functions that it wants called.
    """

    reasoning: str | None
    tool_calls: list[ToolCall]

    @property
    def message(self) -> dict[str, Any]:
        """The turn as a message, to be appended to the conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "type": "function",
                    # Mistral's templates want nine letters and digits.
                    "id": call.id or f"call{i:05d}",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for i, call in enumerate(self.tool_calls)
            ]
        return message


class ChatStream(Handle, Iterator[str]):
    """Pieces of the answer as they become certain, from :meth:`Engine.chat`.

    Joined they are the result's ``text``; :meth:`events` gives the reasoning, too. Tool calls
    stand in the result. As with :class:`Stream`, nothing is computed before it is asked for.
    """

    def __init__(self, raw: Stream, parser: Parser) -> None:
        self._raw = raw
        self._parser = parser
        self._parts: dict[str, list[str]] = {"reasoning": [], "answer": []}
        self._events = self._read()

    def __iter__(self) -> ChatStream:
        return self

    def __next__(self) -> str:
        return next(text for kind, text in self._events if kind == "answer")

    def events(self) -> Iterator[Piece]:
        """Pairs of ``"reasoning"`` or ``"answer"`` and a piece of text."""
        return self._events

    def _read(self) -> Iterator[Piece]:
        for text in self._raw:
            yield from self._note(self._parser.feed(text))
        yield from self._note(self._parser.finish())

    def _note(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for kind, text in pieces:
            self._parts[kind].append(text)
            yield kind, text

    def cancel(self) -> None:
        """Ends the turn from any thread."""
        self._raw.cancel()

    def close(self) -> None:
        """Ends the turn and frees its memory; from the thread that iterates."""
        self._raw.close()
        for _ in self._note(self._parser.finish()):
            pass  # what was held back is part of the result

    @property
    def result(self) -> ChatReply:
        """What there is so far; finish_reason is ``"cancelled"`` until it ends otherwise."""
        raw = self._raw.result
        fields = {name: getattr(raw, name) for name in Generation.__slots__}
        reasoning = "".join(self._parts["reasoning"])
        return ChatReply(
            **fields | {"text": "".join(self._parts["answer"])},
            reasoning=reasoning or None,
            tool_calls=list(self._parser.calls),
        )


@dataclass(frozen=True, slots=True)
class Prepared:
    """A turn before it runs.

    Attributes:
        prompt: The rendered template.
        tokens: Its ids.
        turn: What the generation needs to know.
        parser: Takes the output apart.
        end_texts: Texts that end the turn because no token does.
    """

    prompt: str
    tokens: list[int]
    turn: Turn
    parser: Parser
    end_texts: tuple[str, ...]

    def stops(self, stop: str | Sequence[str] | None) -> str | Sequence[str] | None:
        """The caller's stop strings and those of the template."""
        if not self.end_texts:
            return stop
        if stop is not None and not isinstance(stop, str):
            instance("stop", stop, Sequence, "a string or a sequence of strings")
        given = (stop,) if isinstance(stop, str) else tuple(stop or ())
        return (*given, *self.end_texts)


def prepare(
    engine: Engine,
    messages: object,
    *,
    tools: object,
    documents: object,
    template: str | None,
    continue_final_message: bool,
    session: Session | None,
    variables: Mapping[str, Any],
) -> Prepared:
    """Renders and tokenizes a conversation; see :meth:`Engine.chat`."""
    chat = checked_messages(messages)
    schemas = tool_schemas(tools)
    if session is not None:
        instance("session", session, Session, "a Session")
        session.check_engine(engine)
    if _RESERVED in variables:
        raise ArgumentError(f"{_RESERVED}: expected continue_final_message instead, found it given")
    tokenizer = engine.tokenizer
    chosen = engine.chat_templates.choose(template, tools=schemas is not None)
    if template is None and not engine.chat_templates.is_checked:
        check_rendering(engine.file.metadata, engine.chat_templates, tokenizer)
        engine.chat_templates.is_checked = True
    given = {**tokenizer.special_tokens, **variables}
    prompt = chosen.render(
        chat,
        tools=schemas,
        documents=_checked_documents(documents),
        add_generation_prompt=not continue_final_message,
        continue_final_message=continue_final_message,
        variables=given,
    )
    ids, texts = _ends(chosen, tokenizer, given)
    parser = parser_for(prompt, tool_functions(schemas))
    named = (tokenizer.special_id(text) for text in parser.markup)
    return Prepared(
        prompt,
        # The template writes BOS itself, where the model wants one.
        tokenizer.encode(prompt, add_special=False, parse_special=True),
        Turn(ids, frozenset(token for token in named if token is not None) - ids, session),
        parser,
        texts,
    )


def _checked_documents(documents: object) -> list[Mapping[str, Any]] | None:
    if documents is None:
        return None
    if not isinstance(documents, list | tuple):
        raise ArgumentError(f"documents: expected a list, found {type(documents).__name__}")
    for i, document in enumerate(documents):
        instance(f"documents[{i}]", document, Mapping, "a mapping with title and text")
    return list(documents)


def _ends(
    template: ChatTemplate, tokenizer: Tokenizer, variables: Mapping[str, Any]
) -> tuple[frozenset[int], tuple[str, ...]]:
    """What ends a turn: tokens by the file, and by the template tokens or texts."""
    ids = set(tokenizer.eog_ids)
    if "<|channel|>" in template.source:
        return frozenset(ids), ()  # one turn has several messages, with ends of their own
    texts = []
    for name in sorted(name for name in END_NAMES if name in template.source):
        token = tokenizer.special_id(name)
        if token is None:
            texts.append(name)
        else:
            ids.add(token)
    first = _first_token(tokenizer, _after_answer(template, variables))
    if first is not None and tokenizer.is_control(first):
        ids.add(first)
    return frozenset(ids), tuple(texts)


def _first_token(tokenizer: Tokenizer, text: str) -> int | None:
    try:
        ids = tokenizer.encode(text[:200], add_special=False, parse_special=True)
    except TokenizerError:
        return None  # the vocabulary cannot express what stands there
    return ids[0] if ids else None


def _after_answer(template: ChatTemplate, variables: Mapping[str, Any]) -> str:
    """What the template writes behind an answer; empty if it cannot be had."""
    user = {"role": "user", "content": "a"}
    try:
        text = template.render(
            [user, {"role": "assistant", "content": _PROBE}, user], variables=variables
        )
    except ChatTemplateError:
        return ""
    return text.partition(_PROBE)[2].lstrip()
