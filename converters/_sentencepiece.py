"""SentencePiece vocabularies (BPE with scores), out of tokenizer.model or tokenizer.json."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from converters._byte_bpe import merge_list, vocabulary_table
from converters._gguf_writer import Field
from converters._json import read_optional
from converters._vocabulary import (
    ADDED_SCORE,
    BYTE,
    NORMAL,
    SPACE_MARK,
    UNKNOWN,
    USER_DEFINED,
    AddedToken,
    Vocabulary,
    added_tokens,
    config_added_tokens,
)
from pyengine._errors import ConversionError
from pyengine._vocabulary import METASPACE_KEY

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_BPE = 2
# What SentencePiece writes for runs of spaces.
_SPACES_SCORE = -1e9
_ADD_SPACE = "tokenizer.ggml.add_space_prefix"


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number longer than 10 bytes")


def _messages(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of one protocol-buffer message: (number, value), unread types as bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if length > len(data) - at:
            raise ValueError(f"a field of {length} bytes with {len(data) - at} left")
        yield tag >> 3, data[at : at + length]
        at += length


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _messages(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            score = struct.unpack("<f", value)[0]
        elif number == 3 and isinstance(value, int):
            kind = value
    if not NORMAL <= kind <= BYTE:
        raise ValueError(f"piece {text!r} of type {kind}")
    return text, score, kind


def read_model_file(path: Path, tokenizer_config: dict[str, Any], size: int) -> Vocabulary:
    """Reads tokenizer.model, a protocol buffer, and the tokens added beside it.

    Args:
        path: The file; added_tokens.json is looked for next to it.
        tokenizer_config: tokenizer_config.json, or empty.
        size: Rows of the embedding.

    Returns:
        The vocabulary.

    Raises:
        ConversionError: The file is broken, is no BPE model, or has more tokens than `size`.
    """
    result = Vocabulary("llama", "default", size, str(path), scored=True)
    # Protocol-buffer defaults; a file leaves out what equals them.
    model_type, normalizer, add_prefix, squeeze = 1, b"", True, True
    pieces: list[tuple[str, float, int]] = []
    try:
        for number, value in _messages(path.read_bytes()):
            if number == 1 and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif number == 2 and isinstance(value, bytes):
                stated = dict(_messages(value)).get(3)
                model_type = stated if isinstance(stated, int) else model_type
            elif number == 3 and isinstance(value, bytes):
                spec = dict(_messages(value))
                rules = spec.get(2, b"")
                normalizer = rules if isinstance(rules, bytes) else b""
                add_prefix, squeeze = bool(spec.get(3, True)), bool(spec.get(4, True))
    except (ValueError, IndexError) as error:
        reason = "the end of the file" if isinstance(error, IndexError) else error
        raise ConversionError(f"{path}: expected a SentencePiece model, found {reason}") from None
    if model_type != _BPE or not pieces:
        found = _MODEL_TYPES.get(model_type, str(model_type))
        raise ConversionError(
            f"{path}: expected a SentencePiece model of type bpe, "
            f"found type {found} with {len(pieces)} pieces"
        )
    for number, (text, score, kind) in enumerate(pieces):
        result.put(number, text, kind, score)
    if not add_prefix:
        result.fields.append(Field(_ADD_SPACE, "bool", False))
    result.rewrites = bool(normalizer) or squeeze
    if result.rewrites:
        # Readers of this tokenizer model take text as it is, without these rules.
        what = [w for w, on in (("rewrite text", normalizer), ("squeeze spaces", squeeze)) if on]
        result.notes.append(
            f"{path.name} asks to {' and to '.join(what)} before splitting; GGUF readers do not"
        )
    _add_beside(path.parent, tokenizer_config, result)
    _apply_prefix(tokenizer_config, result)
    return result


def _add_beside(folder: Path, tokenizer_config: dict[str, Any], result: Vocabulary) -> None:
    file = folder / "added_tokens.json"
    for text, number in read_optional(file).items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise ConversionError(f"{file}: token {text!r}: expected an id, found {number!r}")
        result.put(number, text, USER_DEFINED, ADDED_SCORE)
    for added in config_added_tokens(tokenizer_config, str(folder / "tokenizer_config.json")):
        if added.number < result.size and _same_piece(result, added):
            continue
        result.put_added(added)


def _same_piece(result: Vocabulary, added: AddedToken) -> bool:
    """Whether a listed token only repeats <unk>, which keeps its type of its own."""
    return result.types[added.number] == UNKNOWN and result.tokens[added.number] == added.text


def _apply_prefix(tokenizer_config: dict[str, Any], result: Vocabulary) -> None:
    stated = tokenizer_config.get("add_prefix_space")
    if isinstance(stated, bool):
        result.fields = [field for field in result.fields if field.key != _ADD_SPACE]
        result.fields.append(Field(_ADD_SPACE, "bool", stated))


def read_json_file(
    tokenizer_json: dict[str, Any], tokenizer_config: dict[str, Any], size: int, where: str
) -> Vocabulary:
    """Derives a SentencePiece vocabulary from a tokenizer.json that was made from one.

    GGUF's readers merge whichever neighbours form the token of the best score, while
    tokenizer.json lists the allowed merges by rank. The two agree only if the list is complete and
    ordered by the merged token; that is checked, so that no text comes out split otherwise.

    Args:
        tokenizer_json: The parsed file.
        tokenizer_config: tokenizer_config.json, or empty.
        size: Rows of the embedding.
        where: The file, for messages.

    Returns:
        The vocabulary.

    Raises:
        ConversionError: The merges cannot be expressed as scores, or the normalizer is unknown.
    """
    model = tokenizer_json["model"]
    table = vocabulary_table(model, where)
    added = list(added_tokens(tokenizer_json, tokenizer_config, where))
    result = Vocabulary("llama", "default", size, where, scored=True)
    outside = {token.text for token in added}
    normal = {
        text: number
        for text, number in table.items()
        if text not in outside and text != model.get("unk_token") and not _BYTE_TOKEN.match(text)
    }
    scores = _scores(normal, merge_list(model, where), where)
    for text, number in table.items():
        kind = NORMAL if text in normal else BYTE
        result.put(number, text, kind, scores.get(text, 0.0))
    for token in added:
        result.put_added(token)
    unknown = model.get("unk_token")
    if unknown in table:
        result.put(table[unknown], unknown, UNKNOWN, 0.0)
    if not _puts_space_first(tokenizer_json, where):
        result.fields.append(Field(_ADD_SPACE, "bool", False))
    result.fields += metaspace_fields(tokenizer_json)
    _apply_prefix(tokenizer_config, result)
    return result


def metaspace_fields(tokenizer_json: dict[str, Any]) -> list[Field]:
    """How the original puts a space before text, where GGUF's readers do otherwise."""
    splitter = tokenizer_json.get("pre_tokenizer")
    kind = splitter.get("type") if isinstance(splitter, dict) else None
    scheme = splitter.get("prepend_scheme") if isinstance(splitter, dict) else None
    if kind != "Metaspace" or scheme not in ("first", "always"):
        return []
    return [Field(METASPACE_KEY, "str", scheme)]


def _scores(normal: dict[str, int], merges: list[tuple[str, str]], where: str) -> dict[str, float]:
    """Scores that make merging by score follow the ranks of `merges`."""
    order: dict[str, int] = {}
    last = ""
    for left, right in merges:
        whole = left + right
        if whole not in normal:
            continue
        if _is_spaces(whole):
            # SentencePiece gives every run of spaces one score, the worst there is; their merges
            # come last and in no order that scores could follow.
            last = whole
            continue
        if whole != last and (whole in order or _is_spaces(last)):
            raise ConversionError(
                f"{where}: merges: expected all merges into {whole!r} in a row and before those "
                "of spaces, found them apart; tokenizer.model is needed"
            )
        order.setdefault(whole, len(order))
        last = whole
    pairs = set(merges)
    for text in normal:
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in normal and right in normal and (left, right) not in pairs:
                raise ConversionError(
                    f"{where}: merges: expected {left!r} + {right!r}, as scores would merge them, "
                    "found no such merge; tokenizer.model is needed"
                )
    # SentencePiece numbers its pieces in the order of their scores; where the ids agree with the
    # ranks, the scores come out as in the model that the file was made from.
    by_id = sorted(normal, key=lambda text: normal[text])
    ranked = by_id
    if [text for text in by_id if text in order] != list(order):
        ranked = [*order, *(text for text in by_id if text not in order)]
    return {
        text: _SPACES_SCORE if _is_spaces(text) else -float(rank)
        for rank, text in enumerate(ranked)
    }


def _is_spaces(text: str) -> bool:
    return bool(text) and not text.strip(SPACE_MARK)


def _puts_space_first(tokenizer_json: dict[str, Any], where: str) -> bool:
    """Whether a space is put before a text; refuses other rules that GGUF cannot express."""
    normalizer, splitter = tokenizer_json.get("normalizer"), tokenizer_json.get("pre_tokenizer")
    steps: list[Any] = []
    if isinstance(normalizer, dict):
        steps = normalizer.get("normalizers", []) if "normalizers" in normalizer else [normalizer]
    prepend = {"type": "Prepend", "prepend": SPACE_MARK}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    if splitter is None and steps in ([prepend, replace], [replace]):
        return len(steps) == 2
    if (
        not steps
        and isinstance(splitter, dict)
        and splitter.get("type") == "Metaspace"
        and splitter.get("replacement") == SPACE_MARK
        and splitter.get("split") is False
        and splitter.get("prepend_scheme") in ("always", "first", "never")
    ):
        return bool(splitter["prepend_scheme"] != "never")
    raise ConversionError(
        f"{where}: expected spaces to become {SPACE_MARK!r} and nothing else, "
        f"found normalizer {str(normalizer)[:150]} and pre_tokenizer {str(splitter)[:150]}"
    )
