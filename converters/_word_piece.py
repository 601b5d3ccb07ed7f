"""WordPiece vocabularies (BERT's) out of tokenizer.json."""

from __future__ import annotations

from typing import Any

from converters._byte_bpe import vocabulary_table
from converters._gguf_writer import Field
from converters._vocabulary import (
    NORMAL,
    SPACE_MARK,
    Vocabulary,
    added_tokens,
)
from pyengine._errors import ConversionError

_CONTINUES = "##"
# What GGUF's readers do to every text and have no keys for.
_NORMALIZER = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
_MODEL = {"continuing_subword_prefix": _CONTINUES, "max_input_chars_per_word": 100}


def read_word_piece(
    tokenizer_json: dict[str, Any], tokenizer_config: dict[str, Any], size: int, where: str
) -> Vocabulary:
    """Turns a WordPiece tokenizer.json into GGUF's terms.

    GGUF marks the beginning of a word and not, as BERT does, its continuation.

    Args:
        tokenizer_json: The parsed file.
        tokenizer_config: tokenizer_config.json, or empty.
        size: Rows of the embedding.
        where: The file, for messages.

    Returns:
        The vocabulary.

    Raises:
        ConversionError: The tokenizer does something that GGUF cannot say.
    """
    model, normalizer = tokenizer_json["model"], tokenizer_json.get("normalizer") or {}
    _expect(model, _MODEL, where, "model")
    _expect(normalizer, _NORMALIZER, where, "normalizer")
    splitter = tokenizer_json.get("pre_tokenizer") or {}
    _expect(splitter, {"type": "BertPreTokenizer"}, where, "pre_tokenizer")
    result = Vocabulary("bert", "default", size, where)
    for text, number in vocabulary_table(model, where).items():
        begins = not text.startswith(_CONTINUES)
        written = SPACE_MARK + text if begins else text.removeprefix(_CONTINUES)
        result.put(number, written, NORMAL)
    for added in added_tokens(tokenizer_json, tokenizer_config, where):
        result.put_added(added)
    lowercase = normalizer.get("lowercase", True)
    strips = normalizer.get("strip_accents")
    for key, value in (
        ("lowercase", lowercase),
        ("strip_accents", lowercase if strips is None else strips),
    ):
        if not isinstance(value, bool):
            raise ConversionError(
                f"{where}: normalizer: {key}: expected true or false, found {value!r:.60}"
            )
        result.fields.append(Field(f"tokenizer.ggml.normalizer.{key}", "bool", value))
    return result


def _expect(part: Any, expected: dict[str, object], where: str, name: str) -> None:
    for key, value in expected.items():
        found = part.get(key, value if key != "type" else None) if isinstance(part, dict) else part
        if found != value:
            raise ConversionError(
                f"{where}: {name}: {key}: expected {value!r}, found {found!r:.80}"
            )
