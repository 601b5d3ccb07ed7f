"""Gemma's BPE (``tokenizer.ggml.model`` = "gemma4") on the ``tokenizers`` library.

Merges as byte-level BPE has them, over the characters of the whole text: a space is written
U+2581, and what the vocabulary lacks falls back to one token a byte.
"""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import models

from pyengine._byte_bpe import read_merges
from pyengine._errors import TokenizerError
from pyengine._vocabulary import BYTE, CONTROL, KEY, UNKNOWN, Metadata

_SPACE = "\u2581"


class GemmaBpe:
    """BPE over characters with byte fallback."""

    def __init__(
        self, metadata: Metadata, texts: Sequence[str | None], types: Sequence[int]
    ) -> None:
        unknown = metadata.token_id("unknown_token_id", len(texts))
        if unknown is None and UNKNOWN in types:
            unknown = types.index(UNKNOWN)
        vocab: dict[str, int] = {}
        for token, text in enumerate(texts):
            if text and (types[token] != CONTROL or token == unknown):
                vocab.setdefault(text, token)
        n_bytes = types.count(BYTE)
        if n_bytes != 256 or not all(f"<0x{byte:02X}>" in vocab for byte in range(256)):
            raise TokenizerError(
                f"{KEY}token_type: expected byte tokens (type 6) for all 256 bytes, found {n_bytes}"
            )
        try:
            model = models.BPE(
                vocab=vocab,
                merges=read_merges(metadata),
                byte_fallback=True,
                fuse_unk=True,
                unk_token=None if unknown is None else texts[unknown],
            )
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(
                f"{KEY}merges: expected merges of tokens in {KEY}tokens, found: {error}"
            ) from error
        self._tokenizer = tokenizers.Tokenizer(model)

    def encode(self, text: str) -> list[int]:
        written = text.replace(" ", _SPACE)
        return list(self._tokenizer.encode(written, add_special_tokens=False).ids)

    def token_bytes(self, raw: bytes) -> bytes:
        return raw.replace(_SPACE.encode(), b" ")
