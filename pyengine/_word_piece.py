"""WordPiece (``tokenizer.ggml.model`` = "bert") on the ``tokenizers`` library.

GGUF writes the beginning of a word with U+2581 before it and its continuation bare, where BERT's
own vocabulary has the beginning bare and the continuation behind ``##``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from pyengine._errors import TokenizerError
from pyengine._vocabulary import CONTROL, KEY, UNKNOWN, Metadata

_SPACE = "\u2581"


class WordPiece:
    """Words cut at spaces and punctuation, each into the longest pieces from its beginning.

    Case, accents and spaces are lost, as BERT has it.
    """

    def __init__(
        self, metadata: Metadata, texts: Sequence[str | None], types: Sequence[int]
    ) -> None:
        vocab: dict[str, int] = {}
        for token, text in enumerate(texts):
            if not text:
                continue
            if text.startswith(_SPACE):
                name = text[1:]
            elif types[token] in (CONTROL, UNKNOWN) or re.fullmatch(r"\[.+\]", text):
                name = text
            else:
                name = f"##{text}"
            vocab.setdefault(name, token)
        unknown = metadata.token_id("unknown_token_id", len(texts))
        name = "[UNK]" if unknown is None else (texts[unknown] or "").removeprefix(_SPACE)
        if name not in vocab:
            raise TokenizerError(
                f"{KEY}model: expected a vocabulary with a token for unknown words ([UNK]), "
                "found 'bert' without one"
            )
        lowercase = metadata.flag("normalizer.lowercase", default=True)
        self._tokenizer = tokenizers.Tokenizer(
            models.WordPiece(vocab, unk_token=name, max_input_chars_per_word=100)
        )
        self._tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=True,
            strip_accents=metadata.flag("normalizer.strip_accents", default=lowercase),
            lowercase=lowercase,
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def token_bytes(self, raw: bytes) -> bytes:
        return raw.replace(_SPACE.encode(), b" ")
