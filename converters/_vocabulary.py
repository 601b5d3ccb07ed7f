"""A vocabulary on its way into a GGUF file, and how added tokens join it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from converters._gguf_writer import Field
from pyengine._errors import ConversionError
from pyengine._vocabulary import LEFT_KEY, RIGHT_KEY

# GGUF's token types; SentencePiece numbers its own in the same way.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# SentencePiece writes a space as this mark.
SPACE_MARK = "\u2581"
# Scores of tokens that no merge may produce.
ADDED_SCORE = -1000.0
PAD_SCORE = -10000.0

_CONTROL_TEXTS = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_CONTROL_BRACKETS = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))


@dataclass(frozen=True)
class AddedToken:
    """A token that stands beside the model's own vocabulary.

    Attributes:
        number: Its id.
        text: Its text, not byte-encoded.
        special: Whether it is markup and not text.
        strips: Whether it takes the white space before and after it along.
    """

    number: int
    text: str
    special: bool
    strips: tuple[bool, bool] = (False, False)

    @property
    def kind(self) -> int:
        """Its GGUF type. Some checkpoints forget to flag markup that any reader would know."""
        looks_special = self.text in _CONTROL_TEXTS or any(
            self.text.startswith(begin) and self.text.endswith(end)
            for begin, end in _CONTROL_BRACKETS
        )
        return CONTROL if self.special or looks_special else USER_DEFINED

    @property
    def written(self) -> str:
        """The text as GGUF holds it: a user-defined token has plain spaces."""
        return self.text.replace(SPACE_MARK, " ") if self.kind == USER_DEFINED else self.text


@dataclass
class Vocabulary:
    """Tokens by id; ids that nothing names stay "[PADn]" of type unused.

    Attributes:
        model: tokenizer.ggml.model.
        pre: tokenizer.ggml.pre.
        size: How many tokens the embedding has.
        where: The file, for messages.
        scored: Whether tokens carry scores.
        merges: Byte-pair merges in "a b" form, for a model that has no scores.
        fields: More metadata that belongs to this kind of tokenizer.
        notes: What was odd enough to tell the user.
        rewrites: Whether the original changes a text before it splits it.
    """

    model: str
    pre: str
    size: int
    where: str
    scored: bool = False
    merges: list[str] = field(default_factory=list)
    fields: list[Field] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rewrites: bool = False

    def __post_init__(self) -> None:
        self.tokens = [f"[PAD{i}]" for i in range(self.size)]
        self.types = [UNUSED] * self.size
        self.scores = [PAD_SCORE] * self.size
        self.stripping: tuple[set[int], set[int]] = (set(), set())

    def put(self, number: int, text: str, kind: int, score: float = 0.0) -> None:
        """Names one id.

        Raises:
            ConversionError: The embedding has no such row.
        """
        if not 0 <= number < self.size:
            raise ConversionError(
                f"{self.where}: token {text!r}: expected an id below vocab_size {self.size}, "
                f"found {number}"
            )
        self.tokens[number], self.types[number], self.scores[number] = text, kind, score

    def put_added(self, added: AddedToken) -> None:
        """Names one id with an added token, over whatever was there."""
        self.put(added.number, added.written, added.kind, ADDED_SCORE)
        for ids, strips in zip(self.stripping, added.strips, strict=True):
            (ids.add if strips else ids.discard)(added.number)

    def all_fields(self) -> list[Field]:
        """The metadata."""
        fields = [
            Field("tokenizer.ggml.model", "str", self.model),
            Field("tokenizer.ggml.pre", "str", self.pre),
            Field("tokenizer.ggml.tokens", "str", self.tokens),
        ]
        if self.scored:
            fields.append(Field("tokenizer.ggml.scores", "f32", self.scores))
        fields.append(Field("tokenizer.ggml.token_type", "i32", self.types))
        if self.merges:
            fields.append(Field("tokenizer.ggml.merges", "str", self.merges))
        # GGUF has no keys for this; the engine reads ours.
        for key, ids in zip((LEFT_KEY, RIGHT_KEY), self.stripping, strict=True):
            if ids:
                fields.append(Field(key, "u32", sorted(ids)))
        return fields + self.fields


def added_tokens(
    tokenizer_json: dict[str, Any], tokenizer_config: dict[str, Any], where: str
) -> Iterator[AddedToken]:
    """tokenizer.json's added tokens, then those that only tokenizer_config.json has."""
    known = set()
    for token in _json_added_tokens(tokenizer_json, where):
        known.add(token.number)
        yield token
    for token in config_added_tokens(tokenizer_config, "tokenizer_config.json"):
        if token.number not in known:
            yield token


def _json_added_tokens(tokenizer_json: dict[str, Any], where: str) -> Iterator[AddedToken]:
    """tokenizer.json's added tokens, checked."""
    rows = tokenizer_json.get("added_tokens") or []
    if not isinstance(rows, list):
        raise ConversionError(
            f"{where}: added_tokens: expected a list, found {type(rows).__name__}"
        )
    for row in rows:
        number = row.get("id") if isinstance(row, dict) else None
        text = row.get("content") if isinstance(row, dict) else None
        if isinstance(number, bool) or not isinstance(number, int) or not isinstance(text, str):
            raise ConversionError(
                f"{where}: added_tokens: expected objects with id and content, "
                f"found {str(row)[:80]}"
            )
        yield AddedToken(number, text, bool(row.get("special")), _strips(row))


def config_added_tokens(tokenizer_config: dict[str, Any], where: str) -> Iterator[AddedToken]:
    """tokenizer_config.json's added_tokens_decoder, checked."""
    table = tokenizer_config.get("added_tokens_decoder") or {}
    if not isinstance(table, dict):
        raise ConversionError(
            f"{where}: added_tokens_decoder: expected an object, found {type(table).__name__}"
        )
    for key, row in table.items():
        text = row.get("content") if isinstance(row, dict) else None
        if not key.isascii() or not key.isdigit() or len(key) > 10 or not isinstance(text, str):
            raise ConversionError(
                f"{where}: added_tokens_decoder: expected ids with an object that has content, "
                f"found {key[:40]!r}: {str(row)[:80]}"
            )
        yield AddedToken(int(key), text, bool(row.get("special")), _strips(row))


def _strips(row: dict[str, Any]) -> tuple[bool, bool]:
    return bool(row.get("lstrip")), bool(row.get("rstrip"))
