"""Chat templates: from messages to the text of a prompt, as transformers renders it."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jinja2

from pyengine._errors import ArgumentError, ChatTemplateError
from pyengine._sandbox import Environment, metered

_KEY = "tokenizer.chat_template"
_DEFAULT = "default"
# Put behind the message to be continued, and cut off again with what the template adds to it.
_CONTINUE = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """One template. Nothing is compiled, and so nothing can fail, before the first rendering.

    Args:
        source: Jinja text.
        name: What errors call it.
    """

    def __init__(self, source: str, name: str) -> None:
        self.source = source
        self.name = name

    def __repr__(self) -> str:
        return f"ChatTemplate({self.name!r}, {len(self.source)} characters)"

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return Environment().from_string(self.source)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text that ``apply_chat_template(..., tokenize=False)`` of transformers gives.

        Args:
            messages: Checked messages; see ``_messages.py``.
            tools: JSON schemas.
            documents: For templates of retrieval models.
            add_generation_prompt: End with what begins the assistant's answer.
            continue_final_message: End inside the last message, which the model goes on with.
            variables: Further variables of the template, special tokens among them.

        Raises:
            ChatTemplateError: The template is broken, refuses the messages or does not end;
                names the template, the line and the cause.
            ArgumentError: continue_final_message beside add_generation_prompt, or with
                nothing to continue.
        """
        chat = [_with_reasoning(_plain(dict(message))) for message in messages]
        final = self._mark_final(chat) if continue_final_message else ""
        if continue_final_message and add_generation_prompt:
            raise ArgumentError(
                "continue_final_message: expected add_generation_prompt to be off, found both"
            )
        text = self._render(
            _plain(dict(variables or {}))
            | {
                "messages": chat,
                "tools": _plain(tools),
                "documents": _plain(documents),
                "add_generation_prompt": add_generation_prompt,
            }
        )
        return self._cut_final(text, final) if continue_final_message else text

    def _render(self, variables: dict[str, Any]) -> str:
        try:
            with metered():
                return self._compiled.render(variables)
        except jinja2.TemplateSyntaxError as error:
            raise self._error(error.message or "syntax error", error.lineno) from error
        except RecursionError as error:
            raise self._error(
                "expected macros and blocks that end, found endless nesting"
            ) from error
        # Whatever a template does to values of its own is its error, of any type.
        except Exception as error:
            cause = str(error) or type(error).__name__
            if not isinstance(error, jinja2.TemplateError):
                cause = f"{type(error).__name__}: {cause}"
            raise self._error(cause, _line(error)) from error

    def _error(self, cause: str, line: int | None = None) -> ChatTemplateError:
        where = "" if line is None else f", line {line}"
        return ChatTemplateError(f"chat template {self.name}{where}: {cause}")

    def _mark_final(self, chat: list[dict[str, Any]]) -> str:
        content = chat[-1].get("content") if chat else None
        if isinstance(content, str):
            chat[-1]["content"] = content + _CONTINUE
            return content
        for part in reversed(content) if isinstance(content, list | tuple) else ():
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                text: str = part["text"]
                part["text"] = text + _CONTINUE
                return text
        raise ArgumentError(
            "continue_final_message: expected a last message with text to continue, found none"
        )

    def _cut_final(self, text: str, final: str) -> str:
        at = text.rfind(_CONTINUE.strip())
        if at < 0 or final.strip() not in text:
            raise self._error("expected the final message in the rendered chat, found it left out")
        # Where the template strips messages, the end of this one was stripped behind the mark.
        return text[:at] if text.startswith(_CONTINUE, at) else text[:at].rstrip()


def _line(error: BaseException) -> int | None:
    """The line of the template in which an error arose."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == "<template>"]
    return lines[-1] if lines else None


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Reasoning under each name that templates look for; a null field is like none at all."""
    message = {key: value for key, value in message.items() if value is not None}
    found = [message[name] for name in _REASONING_FIELDS if name in message]
    return {"thinking": found[0], **message, "reasoning_content": found[0]} if found else message


def _plain(value: Any) -> Any:
    """A copy made of JSON's types only: other objects have methods that are not the template's."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    # A subclass may well have another idea of its own text.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if hasattr(value, "item") and type(value).__module__ == "numpy":
        return (
            _plain(value.item()) if getattr(value, "ndim", 0) == 0 else f"<{type(value).__name__}>"
        )
    return f"<{type(value).__name__}>"


class ChatTemplates:
    """The templates of a file by name; a plain one is called "default"."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._sources: dict[str, Any] = {}
        self._made: dict[str, ChatTemplate] = {}
        self.is_checked = False  # whether a chat has been compared with the file's own test
        for key, value in metadata.items():
            if key == _KEY:
                self._sources[_DEFAULT] = value
            elif key.startswith(_KEY + "."):
                self._sources[key[len(_KEY) + 1 :]] = value

    @property
    def names(self) -> list[str]:
        """Names of the templates."""
        return sorted(self._sources)

    @property
    def source(self) -> str | None:
        """Text of the default template, if there is one."""
        source = self._sources.get(_DEFAULT)
        return source if isinstance(source, str) else None

    def choose(self, template: str | None = None, *, tools: bool = False) -> ChatTemplate:
        """A template for one chat.

        Args:
            template: A name of the file's, or Jinja text; None takes the file's "tool_use"
                template where tools are given and there is one, else its default.
            tools: Whether there are tools.

        Raises:
            ChatTemplateError: The file has no template, or one that is no text.
            ArgumentError: Neither a name nor Jinja text.
        """
        if template is None:
            template = "tool_use" if tools and "tool_use" in self._sources else _DEFAULT
            if template not in self._sources:
                known = f"only {', '.join(self.names)}" if self._sources else "none"
                raise ChatTemplateError(
                    f"chat template: expected {_KEY} in the file, found {known}; pass one with "
                    "template=, on the command line with --chat-template FILE"
                )
        elif not isinstance(template, str):
            raise ArgumentError(f"template: expected str, found {type(template).__name__}")
        elif template not in self._sources:
            if "{{" not in template and "{%" not in template:
                known = ", ".join(self.names) or "none"
                raise ArgumentError(
                    f"template: expected Jinja text or a name of the file's ({known}), "
                    f"found {template[:60]!r}"
                )
            return self._once(template, "(given)")
        source = self._sources[template]
        if not isinstance(source, str):
            raise ChatTemplateError(
                f"chat template {template}: expected a string, found {type(source).__name__}"
            )
        return self._once(source, template)

    def _once(self, source: str, name: str) -> ChatTemplate:
        """The template, compiled before if it is the file's or was the last one given."""
        made = self._made.get(name)
        if made is None or made.source != source:
            made = self._made[name] = ChatTemplate(source, name)
        return made
