"""Gemma's BPE out of tokenizer.json: merges over the characters of the whole text."""

from __future__ import annotations

import re
from typing import Any

from converters._byte_bpe import merge_list, vocabulary_table
from converters._gguf_writer import Field
from converters._vocabulary import (
    BYTE,
    NORMAL,
    SPACE_MARK,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    added_tokens,
)
from pyengine._errors import ConversionError

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Markup that readers take replies apart by: GGUF keeps it in the text.
_VISIBLE = (
    "<|channel>",
    "<channel|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    '<|"|>',
)
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}


def read_gemma_bpe(
    tokenizer_json: dict[str, Any], tokenizer_config: dict[str, Any], size: int, where: str
) -> Vocabulary:
    """Turns such a tokenizer.json into GGUF's terms.

    Args:
        tokenizer_json: The parsed file.
        tokenizer_config: tokenizer_config.json, or empty.
        size: Rows of the embedding.
        where: The file, for messages.

    Returns:
        The vocabulary.

    Raises:
        ConversionError: The tokenizer does more than that.
    """
    _check_rules(tokenizer_json, where)
    model = tokenizer_json["model"]
    result = Vocabulary("gemma4", "gemma4", size, where)
    for text, number in vocabulary_table(model, where).items():
        result.put(number, text, BYTE if _BYTE_TOKEN.fullmatch(text) else NORMAL)
    result.merges += [f"{left} {right}" for left, right in merge_list(model, where)]
    for token in added_tokens(tokenizer_json, tokenizer_config, where):
        result.put_added(token)
        if token.text in _VISIBLE:
            result.types[token.number] = USER_DEFINED
    unknown = model.get("unk_token")
    if unknown in model["vocab"]:
        result.put(model["vocab"][unknown], unknown, UNKNOWN)
    result.fields.append(Field("tokenizer.ggml.add_space_prefix", "bool", False))
    return result


def _check_rules(tokenizer_json: dict[str, Any], where: str) -> None:
    """Refuses what GGUF's readers do not do to a text before it is merged."""
    normalizer, splitter = tokenizer_json.get("normalizer"), tokenizer_json.get("pre_tokenizer")
    # Behind the normalizer there are no spaces to split at.
    splits = splitter is not None and (
        splitter.get("type") != "Split" or splitter.get("pattern") != {"String": " "}
    )
    if normalizer != _REPLACE or splits:
        raise ConversionError(
            f"{where}: expected spaces to become {SPACE_MARK!r} and nothing else, "
            f"found normalizer {str(normalizer)[:150]} and pre_tokenizer {str(splitter)[:150]}"
        )
