"""The test that a converted file carries of itself: texts with their ids, a chat with its hash.

The converter has the ids from the model's original tokenizer. Another build, another version of a
library or a changed file that would give other ids is told when the file is opened, and not
found out from worse answers. The chat is rendered when the first one is asked for: a template is
nobody's business before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from pyengine._errors import ChatTemplateError, TokenizerError
from pyengine._template import ChatTemplate, ChatTemplates
from pyengine._tokenizer import Tokenizer

PREFIX = "pyengine.selftest."
TEXTS, LENGTHS, IDS = (PREFIX + name for name in ("texts", "lengths", "ids"))
PARSE_SPECIAL = PREFIX + "parse_special"
TEMPLATE_HASH = PREFIX + "chat_template_sha256"
CHAT_HASH = PREFIX + "chat_sha256"

_CHAT = (
    {"role": "user", "content": "Hello \u00e9\U0001f600"},
    {"role": "assistant", "content": "Hi  there."},
    {"role": "user", "content": "What is 2 + 2?\n"},
)
_SHOWN = 24


def sha256(text: str) -> str:
    """The hash that the file holds of a template or a rendered chat."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def rendered_sha256(template: ChatTemplate, tokenizer: Tokenizer) -> str:
    """The hash of the chat that the file is tested with.

    Raises:
        ChatTemplateError: The template cannot render it.
    """
    text = template.render(_CHAT, add_generation_prompt=True, variables=tokenizer.special_tokens)
    return sha256(text)


def check_tokenizer(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Compares ids with those in the file; a file without any passes.

    Raises:
        TokenizerError: Names the first text that comes out otherwise, or what is wrong with
            the test itself.
    """
    parse = bool(metadata.get(PARSE_SPECIAL, False))
    for number, (text, expected) in enumerate(_cases(metadata)):
        found = tokenizer.encode(text, add_special=False, parse_special=parse)
        if found != expected:
            raise TokenizerError(
                f"{TEXTS}[{number}]: {text!r:.60}: expected the ids of the model's own tokenizer, "
                f"{_shown(expected)}, found {_shown(found)}"
            )


def _cases(metadata: Mapping[str, Any]) -> Iterator[tuple[str, list[int]]]:
    given: list[Any] = [metadata.get(key) for key in (TEXTS, LENGTHS, IDS)]
    if all(value is None for value in given):
        return
    # Arrays of numbers come as numpy's.
    texts, lengths, ids = (v.tolist() if hasattr(v, "tolist") else v for v in given)
    if not (
        all(isinstance(v, list) for v in (texts, lengths, ids))
        and all(isinstance(v, str) for v in texts)
        and all(isinstance(v, int) and v >= 0 for v in [*lengths, *ids])
        and len(texts) == len(lengths)
        and sum(lengths) == len(ids)
    ):
        raise TokenizerError(
            f"{TEXTS}: expected texts, lengths and ids that fit each other, found others"
        )
    at = 0
    for text, length in zip(texts, lengths, strict=True):
        yield text, ids[at : at + length]
        at += length


def _shown(ids: list[int]) -> str:
    more = f" ... ({len(ids)} in all)" if len(ids) > _SHOWN else ""
    return f"{ids[:_SHOWN]}{more}"


def check_template(metadata: Mapping[str, Any], templates: ChatTemplates) -> None:
    """Compares the default template with its hash in the file; without one it passes.

    Raises:
        ChatTemplateError: The template is missing or another one.
    """
    expected = metadata.get(TEMPLATE_HASH)
    if expected is None:
        return
    source = templates.source
    if source is None:
        raise ChatTemplateError(
            f"{TEMPLATE_HASH}: expected the template that was converted, found none"
        )
    _compare(TEMPLATE_HASH, "the template that was converted", expected, sha256(source))


def check_rendering(
    metadata: Mapping[str, Any], templates: ChatTemplates, tokenizer: Tokenizer
) -> None:
    """Compares a rendered chat with its hash in the file; without one it passes.

    Raises:
        ChatTemplateError: The chat comes out otherwise.
    """
    expected = metadata.get(CHAT_HASH)
    if expected is not None and templates.source is not None:
        found = rendered_sha256(templates.choose(), tokenizer)
        _compare(CHAT_HASH, "the chat as it was rendered at conversion", expected, found)


def _compare(key: str, what: str, expected: Any, found: str) -> None:
    if expected != found:
        raise ChatTemplateError(
            f"{key}: expected {what}, SHA-256 {expected!r:.80}, found {found!r}"
        )
