"""The test that goes into the file: nasty texts with the ids of the original tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from converters._gguf_writer import Field
from pyengine import ChatTemplates, Tokenizer
from pyengine._errors import ConversionError, PyengineError
from pyengine._self_test import (
    CHAT_HASH,
    IDS,
    LENGTHS,
    PARSE_SPECIAL,
    TEMPLATE_HASH,
    TEXTS,
    rendered_sha256,
    sha256,
)

_SAMPLES = (
    "Hello, world!",
    " leading and trailing ",
    "  two  spaces  ",
    " " * 37 + "x",
    "\t",
    "\n",
    "\r\n",
    "\n\n\n \n",
    " \t \r\n\t x",
    "a\nb\r\nc\rd",
    "It's they'RE we'Ll 'S \u017f't don\u2019t",
    "CamelCase UPPER lower mIxEd snake_case kebab-case",
    "3 33 333 3333 33333 333333",
    "1,234,567.89 0x1F 1e-5 3..3 v1.2.3",
    "\u0663\u0663\u0663 \u2167 \u00bd \u00b2",
    "x=y+z*(a-b)/c%d&e|f^g!h~i",
    "!!!??? ...... ---- ==== ''''\"\"\"\"``",
    "https://example.org/a?b=c&d=%20#e",
    "def f(x):\n    return x ** 2  # comment\n\n\tif x:\n\t\tpass\n",
    '{"key": [1, 2.5, null], "b": "\\u00e9\\n"}',
    "<b>bold</b> &amp; <!-- x -->",
    "caf\u00e9 na\u00efve \u00fcber stra\u00dfe \u0153uvre",
    "e\u0301 a\u0328\u0301 n\u0303",
    "\u00c5ngstr\u00f6m \u212b \ufb01 \uff21\uff22\uff23",
    "\u0130\u0131\u1e9e\u01c5\u02b0",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
    "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u03ba\u03cc\u03c3\u03bc\u03b5",
    "\u4e2d\u6587\u6d4b\u8bd5\u3002\u4f60\u597d\uff0c\u4e16\u754c",
    "\u65e5\u672c\u8a9e\u30c6\u30b9\u30c8 \u3072\u3089\u304c\u306a",
    "\ud55c\uad6d\uc5b4 \uc548\ub155",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u05e9\u05dc\u05d5\u05dd \u202eabc\u202c",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0915\u094d\u0937\u093f",
    "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22 \u1781\u17d2\u1798\u17c2\u179a",
    "\U0001f600 \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f636\u200d\U0001f32b\ufe0f",
    "\ufeffbom \u00a0\u2003\u3000\u2028\u200b\u00ad",
    "\ufffd \uffff \U0010ffff \u0378",
    # No NUL: llama.cpp's quantizer copies metadata as C strings, which end there.
    "\x01\x02\x1b[0m\x7f\x80\x9f",
    "abc" * 60,
)

Encode = Callable[[str], list[int]]


def self_test_fields(
    source: Path, fields: Sequence[Field], *, rewrites: bool
) -> tuple[list[Field], list[str]]:
    """The metadata of the test, once the tokenizer that is written passes it.

    Args:
        source: tokenizer.json or tokenizer.model, whichever the vocabulary was read from.
        fields: The tokenizer's metadata.
        rewrites: The original changes texts before it splits them, which GGUF cannot say;
            texts that come out otherwise for that reason are left out.

    Returns:
        The fields, and notes for the user.

    Raises:
        ConversionError: The tokenizer that is written gives other ids than the original.
    """
    metadata = {field.key: field.value for field in fields}
    try:
        tokenizer = Tokenizer.from_metadata(metadata)
        encode = _original(source)
    except PyengineError as error:
        return [], [f"no self-test is stored: {error}"]
    parse = source.suffix == ".json"
    texts: list[str] = []
    ids: list[list[int]] = []
    for text in _SAMPLES:
        try:
            found = tokenizer.encode(text, add_special=False, parse_special=parse)
        except PyengineError:
            continue  # letters that the vocabulary lacks: told whenever they come up
        expected = encode(text)
        if found == expected:
            texts.append(text)
            ids.append(expected)
        elif not rewrites:
            raise ConversionError(
                f"{source}: {text!r:.60}: expected the original's ids {expected[:24]} from the "
                f"tokenizer that is written, found {found[:24]}; "
                "--no-self-test converts all the same"
            )
    if not texts:
        return [], ["no self-test is stored: the vocabulary has none of its letters"]
    result = [
        Field(TEXTS, "str", texts),
        Field(LENGTHS, "u32", [len(part) for part in ids]),
        Field(IDS, "u32", [token for part in ids for token in part]),
        Field(PARSE_SPECIAL, "bool", parse),
    ]
    return result + _template_fields(ChatTemplates(metadata), tokenizer), []


def _original(source: Path) -> Encode:
    """The original tokenizer."""
    if source.suffix == ".json":
        import tokenizers

        try:
            original = tokenizers.Tokenizer.from_file(str(source))
        except Exception as error:  # the library raises bare Exception
            raise ConversionError(f"{source}: expected a tokenizer, found: {error}") from error
        original.no_truncation()
        original.no_padding()
        return lambda text: list(original.encode(text, add_special_tokens=False).ids)
    from sentencepiece import SentencePieceProcessor

    processor: Any = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(source.read_bytes())
    except (RuntimeError, OSError, ValueError) as error:
        raise ConversionError(f"{source}: expected a SentencePiece model: {error}") from error
    return lambda text: list(processor.Encode(text))


def _template_fields(templates: ChatTemplates, tokenizer: Tokenizer) -> list[Field]:
    source = templates.source
    if source is None:
        return []
    fields = [Field(TEMPLATE_HASH, "str", sha256(source))]
    # What a template makes of today's date is another tomorrow.
    if "strftime_now" not in source:
        try:
            rendered = rendered_sha256(templates.choose(), tokenizer)
        except PyengineError:
            return fields  # a template that wants other messages, or is broken: told at a chat
        fields.append(Field(CHAT_HASH, "str", rendered))
    return fields
