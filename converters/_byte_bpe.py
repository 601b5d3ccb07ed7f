"""Byte-level BPE vocabularies (GPT-2's kind) out of tokenizer.json."""

from __future__ import annotations

from typing import Any

from converters._gguf_writer import Field
from converters._vocabulary import NORMAL, Vocabulary, added_tokens
from pyengine._errors import ConversionError
from pyengine._vocabulary import NFC_KEY

# Byte-level BPE never leaves a space inside a symbol: it is spelled with this letter.
_SPACE_LETTER = "\u0120"


def merge_list(model: dict[str, Any], where: str) -> list[tuple[str, str]]:
    """The merges of a BPE model in rank order.

    Args:
        model: tokenizer.json's `model`; its merges are "a b" strings or ["a", "b"] pairs.
        where: The file, for messages.

    Returns:
        The pairs.

    Raises:
        ConversionError: A merge is neither.
    """
    rows = model.get("merges")
    if not isinstance(rows, list):
        raise ConversionError(f"{where}: merges: expected a list, found {type(rows).__name__}")
    pairs: list[tuple[str, str]] = []
    for rank, row in enumerate(rows):
        parts = row.split(" ") if isinstance(row, str) else row
        if (
            not isinstance(parts, list)
            or len(parts) != 2
            or not all(isinstance(part, str) and part for part in parts)
        ):
            raise ConversionError(
                f"{where}: merge {rank}: expected two parts, found {str(row)[:80]!r}"
            )
        pairs.append((parts[0], parts[1]))
    return pairs


def vocabulary_table(model: dict[str, Any], where: str) -> dict[str, int]:
    """The model's own tokens, each with an id of its own.

    Raises:
        ConversionError: The table is no such thing.
    """
    table = model.get("vocab")
    if not isinstance(table, dict) or not table:
        raise ConversionError(
            f"{where}: vocab: expected an object that is not empty, found {type(table).__name__}"
        )
    owner: dict[int, str] = {}
    for text, number in table.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ConversionError(
                f"{where}: vocab: token {text!r}: expected an id from 0 up, found {number!r}"
            )
        if owner.setdefault(number, text) != text:
            raise ConversionError(
                f"{where}: vocab: id {number}: expected one token, found {owner[number]!r} "
                f"and {text!r}"
            )
    return table


def read_byte_bpe(
    tokenizer_json: dict[str, Any], tokenizer_config: dict[str, Any], size: int, where: str
) -> Vocabulary:
    """Turns a byte-level BPE tokenizer.json into GGUF's terms.

    Args:
        tokenizer_json: The parsed file.
        tokenizer_config: tokenizer_config.json, or empty.
        size: Rows of the embedding.
        where: The file, for messages.

    Returns:
        The vocabulary.

    Raises:
        ConversionError: The tokenizer is of another kind, or its pre-tokenizer is unknown.
    """
    # Late: the table of pre-tokenizers belongs to the engine, and only this kind needs it.
    from pyengine._pretokenizers import NFC_NAMES, composes, identify

    model = tokenizer_json["model"]
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ConversionError(f"{where}: {key}: expected none, found {model[key]!r}")
    pre = identify(tokenizer_json)
    if pre is None:
        if composes(tokenizer_json) is None:
            raise ConversionError(
                f"{where}: normalizer: expected none or NFC, found "
                f"{str(tokenizer_json.get('normalizer'))[:300]}"
            )
        described = str(tokenizer_json.get("pre_tokenizer"))
        raise ConversionError(
            f"{where}: pre_tokenizer: expected a known one, found {described[:300]}"
        )
    result = Vocabulary("gpt2", pre, size, where)
    nfc = composes(tokenizer_json)
    if nfc is not None and nfc != (pre in NFC_NAMES):
        result.fields.append(Field(NFC_KEY, "bool", nfc))
    for text, number in vocabulary_table(model, where).items():
        result.put(number, text, NORMAL)
    for left, right in merge_list(model, where):
        left, right = (part.replace(" ", _SPACE_LETTER) for part in (left, right))
        result.merges.append(f"{left} {right}")
    for added in added_tokens(tokenizer_json, tokenizer_config, where):
        result.put_added(added)
    stated = tokenizer_config.get("add_prefix_space")
    if isinstance(stated, bool):
        result.fields.append(Field("tokenizer.ggml.add_space_prefix", "bool", stated))
    return result
