"""Text to token ids and back, from the tokenizer that a GGUF file carries.

The algorithms are those of the libraries that the models were trained with: ``tokenizers`` for
byte-level BPE (``tokenizer.ggml.model`` = "gpt2"), Gemma's BPE ("gemma4") and WordPiece ("bert"),
``sentencepiece`` for SentencePiece BPE ("llama") and unigram ("t5"). What is done here is to
rebuild their models from the metadata, and to find special tokens in the text, which neither
library does the way that GGUF's token types ask for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from pyengine._arguments import integer
from pyengine._byte_bpe import ByteLevelBpe, pre_tokenizer_rule
from pyengine._errors import ArgumentError, TokenizerError
from pyengine._gemma_bpe import GemmaBpe
from pyengine._pretokenizers import NFC_NAMES
from pyengine._sentencepiece import SentencePiece
from pyengine._vocabulary import (
    BYTE,
    CONTROL,
    KEY,
    UNKNOWN,
    USER_DEFINED,
    WHITESPACE,
    Metadata,
    byte_value,
    decodable,
)
from pyengine._word_piece import WordPiece

_KINDS = {
    "gpt2": "byte-level BPE",
    "llama": "SentencePiece BPE",
    "gemma4": "BPE with byte fallback",
    "bert": "WordPiece",
    "t5": "SentencePiece unigram",
}

# The ids that vocabularies of a kind have had from before there were keys for them.
_DEFAULT_IDS = {
    "llama": {"bos": 1, "eos": 2},
    "bert": {"bos": 101, "seperator": 102},
    "t5": {"eos": 1},
}

# Names of tokens that end a turn or a text, for files that give no id for them.
END_NAMES = frozenset(
    {
        "</s>",
        "<EOT>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<eos>",
        "<|call|>",
        "<|end_of_text|>",
        "<|end|>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|im_end|>",
        "<|return|>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "[EOS]",
        "[EOT]",
        "<turn|>",
        "<|tool_response>",
        "_<EOT>",
        "<|flush|>",
        "<|calls|>",
        "[e~[",
    }
)


class Tokenizer:
    """The tokenizer of one model; immutable, and safe to share between threads.

    Special tokens follow llama.cpp. Control tokens (``<|im_end|>``) are recognised in text only
    on request, user-defined tokens always; where several match, the leftmost does, then the
    longest. In a SentencePiece model with a space prefix, the text after *every* special token
    gets the prefix, not only the start (``transformers`` with ``legacy=False`` adds it at the
    start alone); ``decode`` takes exactly these spaces away again.

    Letters and accents are composed (Unicode's NFC) where the name of the pre-tokenizer implies it,
    as Qwen's does, or where our converter wrote down that the original does so.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """Builds the tokenizer; see ``from_metadata``."""
        meta = Metadata(metadata)
        self._kind = meta.text("model")
        if self._kind not in _KINDS:
            known = ", ".join(f"{kind!r} ({name})" for kind, name in _KINDS.items())
            raise TokenizerError(f"{KEY}model: expected one of {known}, found {self._kind!r}")
        self._raw = meta.strings("tokens")
        if not self._raw:
            raise TokenizerError(f"{KEY}tokens: expected at least one token, found none")
        byte_level = self._kind == "gpt2"
        self._types = meta.types(len(self._raw), required=not byte_level)
        self._pre = meta.text("pre", "default")
        texts = decodable(self._raw)
        self._model: _Model
        add_bos, self._space_prefix = self._kind != "t5", False
        if self._kind == "gpt2":
            rule = pre_tokenizer_rule(self._pre)
            nfc = meta.nfc(default=self._pre in NFC_NAMES)
            self._model = ByteLevelBpe(meta, texts, self._types, rule, nfc=nfc)
            add_bos = rule.add_bos
        elif self._kind == "gemma4":
            self._model = GemmaBpe(meta, texts, self._types)
        elif self._kind == "bert":
            self._model = WordPiece(meta, texts, self._types)
        else:
            self._model = SentencePiece(meta, texts, self._types, unigram=self._kind == "t5")
            self._space_prefix = self._kind == "llama" and meta.flag(
                "add_space_prefix", default=True
            )
        # What decode takes away before text: the prefix, or what the model put there itself.
        self._leading_space = (
            self._space_prefix
            or self._kind == "bert"
            or (self._kind == "t5" and meta.flag("add_space_prefix", default=False))
        )
        self._set_special_ids(meta, texts, add_bos=add_bos)
        self._metaspace = meta.metaspace()
        self._left, self._right = meta.stripping(texts, self._types)
        self._user_defined = self._special_tokens(texts, {USER_DEFINED})
        self._all_special = self._special_tokens(texts, {USER_DEFINED, CONTROL})

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Builds the tokenizer from the ``tokenizer.ggml.*`` keys of a GGUF file.

        Args:
            metadata: Plain Python values; arrays are lists or NumPy arrays, strings ``str`` or
                UTF-8 ``bytes``. Other keys are ignored. Tokens that are no valid UTF-8 can be
                decoded but are never produced. Without ``pre``, a byte-level BPE file gets the
                rule "default", as in llama.cpp; its ids may then differ from the original's.

        Returns:
            The tokenizer.

        Raises:
            TokenizerError: There is no tokenizer, or its keys are missing or contradict each
                other; the message names the key.
        """
        return cls(metadata)

    @property
    def kind(self) -> str:
        """``tokenizer.ggml.model``: "gpt2", "llama", "gemma4", "bert" or "t5"."""
        return self._kind

    @property
    def pre(self) -> str:
        """Name of the pre-tokenizer rule; of effect only in a "gpt2" tokenizer."""
        return self._pre

    @property
    def n_vocab(self) -> int:
        """Number of tokens; the model's output can be wider."""
        return len(self._raw)

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text."""
        return self._bos_id

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text; to stop generation, use ``eog_ids``."""
        return self._eos_id

    @property
    def eog_ids(self) -> frozenset[int]:
        """All tokens that end generation: by id (EOS, EOT, EOM) or by a well-known name."""
        return self._eog_ids

    @property
    def add_bos(self) -> bool:
        """Whether ``encode`` begins with BOS."""
        return self._add_bos

    @property
    def add_eos(self) -> bool:
        """Whether ``encode`` ends with EOS."""
        return self._add_eos

    @property
    def special_tokens(self) -> dict[str, str]:
        """Texts of the special tokens that the file names, as chat templates call them."""
        return {
            f"{name}_token": self._raw[token].decode("utf-8", "replace")
            for name, token in self._named_ids.items()
            if token is not None
        }

    def special_id(self, text: str) -> int | None:
        """The control or user-defined token that is written so, or None."""
        return self._all_special[1].get(text)

    def is_control(self, token: int) -> bool:
        """Whether a token is a control token (type 3), which stands for no text.

        Raises:
            ArgumentError: ``token`` is outside the vocabulary.
        """
        return self._types[self._checked(token)] == CONTROL

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Turns text into token ids.

        Args:
            text: Any text.
            add_special: Add BOS and EOS where the file says so. A BOS already written in the
                text is kept as well.
            parse_special: Recognise control tokens written in the text. Never for text from
                an untrusted source: it could then end its turn and begin another's.

        Returns:
            The ids.

        Raises:
            ArgumentError: ``text`` holds a lone surrogate.
            TokenizerError: The vocabulary cannot express the text.
        """
        if not isinstance(text, str):
            raise ArgumentError(f"text: expected str, found {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ArgumentError(
                f"text: expected Unicode text, found a lone surrogate at index {error.start}"
            ) from None
        pattern, special_ids = self._all_special if parse_special else self._user_defined
        ids: list[int] = []
        if add_special and self._add_bos and self._bos_id is not None:
            ids.append(self._bos_id)
        begin = 0
        for match in pattern.finditer(text) if pattern else ():
            token = special_ids[match.group()]
            before = text[begin : match.start()]
            before = before.rstrip(WHITESPACE) if token in self._left else before
            if before:
                ids += self._model.encode(self._prefixed(before, first=begin == 0))
            ids.append(token)
            begin = match.end()
            if token in self._right:
                begin = len(text) - len(text[begin:].lstrip(WHITESPACE))
        if begin < len(text):
            ids += self._model.encode(self._prefixed(text[begin:], first=begin == 0))
        if add_special and self._add_eos and self._eos_id is not None:
            ids.append(self._eos_id)
        if add_special and self._separator is not None:
            ids.append(self._separator)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Turns token ids into text, as the inverse of ``encode``.

        ``decode(encode(text, add_special=False))`` is ``text``, except that SentencePiece cannot
        tell U+2581 from a space, and that some tokenizers compose letters and accents. To decode
        a stream, join ``token_bytes`` instead: here the space that ``encode`` adds before text is
        taken away.

        Args:
            ids: Token ids.
            skip_special: Leave out control tokens and the unknown token.

        Returns:
            The text; bytes that are no valid UTF-8 become U+FFFD.

        Raises:
            ArgumentError: An id is outside the vocabulary.
        """
        parts: list[bytes] = []
        strip = self._leading_space
        for token in ids:
            piece = self.token_bytes(token, skip_special=skip_special)
            special = self._types[token] in (CONTROL, USER_DEFINED)
            if strip and not special:
                piece = piece.removeprefix(b" ")
            strip = self._leading_space and special and self._metaspace != "first"
            parts.append(piece)
        return b"".join(parts).decode("utf-8", "replace")

    def token_bytes(self, token: int, *, skip_special: bool = False) -> bytes:
        """The bytes that a token stands for, which need not be whole characters.

        Args:
            token: A token id.
            skip_special: Give nothing, rather than their name, for control tokens and the
                unknown token.

        Returns:
            The bytes; a SentencePiece word keeps its leading space.

        Raises:
            ArgumentError: ``token`` is outside the vocabulary.
        """
        token = self._checked(token)
        raw, kind = self._raw[token], self._types[token]
        if kind in (CONTROL, UNKNOWN):
            return b"" if skip_special else raw
        if kind == USER_DEFINED:
            return raw
        if kind == BYTE and (value := byte_value(raw)) is not None:
            return bytes([value])
        return self._model.token_bytes(raw)

    def _prefixed(self, text: str, *, first: bool) -> str:
        """The text with the space that the vocabulary wants before it."""
        if not self._space_prefix:
            return text
        if self._metaspace is not None and (
            text[0] in " \u2581" or (self._metaspace == "first" and not first)
        ):
            return text
        return " " + text

    def _checked(self, token: int) -> int:
        return integer("token id", token, 0, len(self._raw) - 1)

    def _set_special_ids(
        self, meta: Metadata, texts: Sequence[str | None], *, add_bos: bool
    ) -> None:
        n_vocab = len(self._raw)
        ids = {
            name: meta.token_id(f"{name}_token_id", n_vocab)
            for name in (
                "bos",
                "eos",
                "eot",
                "eom",
                "padding",
                "unknown",
                "seperator",
                "cls",
                "mask",
            )
        }
        for name, default in _DEFAULT_IDS.get(self._kind, {}).items():
            if ids[name] is None and self._types[default : default + 1] == [CONTROL]:
                ids[name] = default
        self._bos_id, self._eos_id = ids["bos"], ids["eos"]
        self._named_ids = {
            "bos": ids["bos"],
            "eos": ids["eos"],
            "unk": ids["unknown"],
            "sep": ids["seperator"],  # GGUF's spelling
            "pad": ids["padding"],
            "cls": ids["cls"],
            "mask": ids["mask"],
        }
        self._add_bos = meta.flag("add_bos_token", default=add_bos and ids["bos"] is not None)
        if self._kind == "gemma4" and ids["bos"] is not None:
            self._add_bos = True  # the first files said otherwise by mistake
        unigram = self._kind == "t5" and ids["eos"] is not None
        self._add_eos = meta.flag("add_eos_token", default=unigram)
        adds_separator = meta.flag("add_sep_token", default=self._kind == "bert")
        self._separator = ids["seperator"] if adds_separator else None
        if self._add_eos and ids["eos"] == self._separator:
            self._separator = None  # some files say twice what BERT adds once
        for name, adds in (("bos", self._add_bos), ("eos", self._add_eos)):
            if adds and ids[name] is None:
                raise TokenizerError(
                    f"{KEY}{name}_token_id: expected an id, since {KEY}add_{name}_token is true, "
                    "found none"
                )
        named = {
            text: token
            for token, text in enumerate(texts)
            if text in END_NAMES
            # Vocabularies that have been extended may have "</s>" as a word.
            and self._types[token] in ({CONTROL} if text == "</s>" else {CONTROL, USER_DEFINED})
        }
        # In the Harmony format <|end|> only ends one message of a turn.
        if {"<|return|>", "<|call|>"} <= named.keys():
            named.pop("<|end|>", None)
        given = (ids["eos"], ids["eot"], ids["eom"])
        self._eog_ids = frozenset(named.values()) | {token for token in given if token is not None}

    def _special_tokens(
        self, texts: Sequence[str | None], types: set[int]
    ) -> tuple[re.Pattern[str] | None, dict[str, int]]:
        ids: dict[str, int] = {}
        for token, text in enumerate(texts):
            if text and self._types[token] in types:
                ids.setdefault(text, token)
        # Alternatives are tried in order, so the longest come first.
        names = sorted(ids, key=len, reverse=True)
        return (re.compile("|".join(map(re.escape, names))) if names else None), ids


class _Model(Protocol):
    """What the two kinds differ in: text without special tokens, and words of the vocabulary."""

    def encode(self, text: str) -> list[int]: ...

    def token_bytes(self, raw: bytes) -> bytes: ...
