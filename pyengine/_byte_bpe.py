"""Byte-level BPE (``tokenizer.ggml.model`` = "gpt2") on the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from pyengine._errors import TokenizerError
from pyengine._pretokenizers import PRE_TOKENIZERS, PreTokenizer
from pyengine._vocabulary import CONTROL, KEY, UNKNOWN, Metadata, decodable


class ByteLevelBpe:
    """Byte-level BPE: every byte is written as one printable character, then BPE merges them."""

    def __init__(
        self,
        metadata: Metadata,
        texts: Sequence[str | None],
        types: Sequence[int],
        rule: PreTokenizer,
        *,
        nfc: bool,
    ) -> None:
        vocab: dict[str, int] = {}
        for token, text in enumerate(texts):
            # With ignore_merges a word of the text could be taken for a control token's name.
            if text and not (rule.ignore_merges and types[token] in (UNKNOWN, CONTROL)):
                vocab.setdefault(text, token)
        merges = read_merges(metadata)
        try:
            model = models.BPE(vocab=vocab, merges=merges, ignore_merges=rule.ignore_merges)
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(
                f"{KEY}merges: expected merges of tokens in {KEY}tokens, found: {error}"
            ) from error
        self._tokenizer = tokenizers.Tokenizer(model)
        self._nfc = normalizers.NFC() if nfc else None
        splits = [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in rule.patterns
        ]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
        self._missing = frozenset(b for char, b in BYTE_OF.items() if char not in vocab)

    def encode(self, text: str) -> list[int]:
        if self._nfc is not None and not text.isascii():
            text = self._nfc.normalize_str(text)
        # The library drops what it cannot express without a word.
        if self._missing and (lost := self._missing.intersection(text.encode("utf-8"))):
            raise TokenizerError(
                f"{KEY}tokens: expected a token for every byte of the text, "
                f"found none for 0x{min(lost):02x}"
            )
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def token_bytes(self, raw: bytes) -> bytes:
        try:
            return bytes([BYTE_OF[char] for char in raw.decode("utf-8")])
        except (KeyError, UnicodeDecodeError):
            return raw  # padding names and the like, never made from text


def read_merges(metadata: Metadata) -> list[tuple[str, str]]:
    """The merges in rank order.

    Raises:
        TokenizerError: One is not two tokens and a space.
    """
    merges: list[tuple[str, str]] = []
    for index, merge in enumerate(decodable(metadata.strings("merges"))):
        left, _, right = (merge or "").partition(" ")
        if not left or not right or " " in right:
            raise TokenizerError(
                f"{KEY}merges[{index}]: expected two tokens and a space, found {merge!r}"
            )
        merges.append((left, right))
    return merges


def pre_tokenizer_rule(pre: str) -> PreTokenizer:
    """The rule of that name.

    Raises:
        TokenizerError: No such rule; another would give other ids without a word.
    """
    if pre not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"{KEY}pre: expected a known pre-tokenizer ({', '.join(sorted(PRE_TOKENIZERS))}), "
            f"found {pre!r}; if it cuts words as one of these does, write that name instead"
        )
    return PRE_TOKENIZERS[pre]


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level BPE, as GPT-2 published it.

    Printable Latin-1 characters stand for themselves; the others get those from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF = _byte_alphabet()
