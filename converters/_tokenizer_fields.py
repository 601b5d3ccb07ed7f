"""The tokenizer of a checkpoint as GGUF metadata."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from converters._byte_bpe import read_byte_bpe
from converters._gemma_bpe import read_gemma_bpe
from converters._gguf_writer import Field
from converters._json import read_object, read_optional
from converters._self_test import self_test_fields
from converters._sentencepiece import metaspace_fields, read_json_file, read_model_file
from converters._special_tokens import special_fields
from converters._vocabulary import Vocabulary
from converters._word_piece import read_word_piece
from pyengine._errors import ConversionError

# Llama 3's own releases call a tiktoken table (base64, space, rank) tokenizer.model, too.
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\n")


def tokenizer_fields(
    folder: Path,
    config: dict[str, Any],
    size: int,
    *,
    by_merges: bool = False,
    self_test: bool = True,
) -> tuple[list[Field], list[str]]:
    """Reads whichever tokenizer files the folder has.

    tokenizer.model goes first where both kinds are there: it has the scores.

    Args:
        folder: The checkpoint.
        config: config.json.
        size: Rows of the embedding; a smaller vocabulary is padded up to it.
        by_merges: BPE with byte_fallback is written as merges, not as scores.
        self_test: Add texts with the ids of the original tokenizer, which loading checks.

    Returns:
        The tokenizer.* fields, and notes for the user.

    Raises:
        ConversionError: There is no tokenizer, or none that GGUF can express.
    """
    json_path, model_path = folder / "tokenizer.json", folder / "tokenizer.model"
    tokenizer_json = read_object(json_path, unique=True) if json_path.is_file() else {}
    tokenizer_config = read_optional(folder / "tokenizer_config.json")
    if model_path.is_file() and not by_merges and not (tokenizer_json and _is_tiktoken(model_path)):
        source = model_path
        vocabulary = read_model_file(model_path, tokenizer_config, size)
        # Where both are there, transformers goes by tokenizer.json.
        spaces = metaspace_fields(tokenizer_json)
        if spaces:
            source = json_path
            vocabulary.fields += spaces
    elif tokenizer_json:
        source = json_path
        where = str(json_path)
        vocabulary = _read_json(tokenizer_json, tokenizer_config, size, where, by_merges)
    else:
        raise ConversionError(
            f"{folder}: expected tokenizer.json or tokenizer.model, found neither"
        )
    special, notes = special_fields(
        folder, config, tokenizer_json, tokenizer_config, vocabulary.tokens
    )
    fields, notes = vocabulary.all_fields() + special, vocabulary.notes + notes
    if self_test:
        tests, found = self_test_fields(source, fields, rewrites=vocabulary.rewrites)
        fields, notes = fields + tests, notes + found
    return fields, notes


def _is_tiktoken(path: Path) -> bool:
    with path.open("rb") as file:
        return _TIKTOKEN_LINE.fullmatch(file.readline(512)) is not None


def _read_json(
    tokenizer_json: dict[str, Any],
    tokenizer_config: dict[str, Any],
    size: int,
    where: str,
    by_merges: bool,
) -> Vocabulary:
    model = tokenizer_json.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if isinstance(model, dict) and kind == "WordPiece":
        return read_word_piece(tokenizer_json, tokenizer_config, size, where)
    # Files from before the field was there have merges instead.
    if not isinstance(model, dict) or kind not in ("BPE", None) or "merges" not in model:
        raise ConversionError(f"{where}: model: expected type 'BPE' or 'WordPiece', found {kind!r}")
    if model.get("byte_fallback"):
        read = read_gemma_bpe if by_merges else read_json_file
        return read(tokenizer_json, tokenizer_config, size, where)
    # Spelled in several places and depths, and only ever with this meaning.
    parts = (tokenizer_json.get("pre_tokenizer"), tokenizer_json.get("decoder"))
    if not any("'ByteLevel'" in str(part) for part in parts):
        raise ConversionError(
            f"{where}: expected byte-level BPE or BPE with byte_fallback, found BPE with neither"
        )
    return read_byte_bpe(tokenizer_json, tokenizer_config, size, where)
