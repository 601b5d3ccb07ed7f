"""SentencePiece vocabularies on the ``sentencepiece`` library.

BPE is ``tokenizer.ggml.model`` = "llama", unigram "t5".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from sentencepiece import SentencePieceProcessor

from pyengine._errors import TokenizerError
from pyengine._vocabulary import BYTE, CONTROL, KEY, UNKNOWN, USER_DEFINED, Metadata, byte_value

_UNIGRAM, _BPE = 1, 2


class SentencePiece:
    """A SentencePiece model, loaded from a model file that is written here from the metadata.

    Args:
        metadata: The file's keys.
        texts: The vocabulary.
        types: Its types.
        unigram: Cut words by likelihood, after the normalization that the file carries; else
            merge pieces by score, and take text as it is.
    """

    def __init__(
        self,
        metadata: Metadata,
        texts: Sequence[str | None],
        types: Sequence[int],
        *,
        unigram: bool = False,
    ) -> None:
        scores = metadata.scores(len(texts))
        unknown = metadata.token_id("unknown_token_id", len(texts))
        if unknown is None or types[unknown] != UNKNOWN:
            unknown = types.index(UNKNOWN) if UNKNOWN in types else None
        # The library wants exactly one unknown piece; without one, a piece after the last is it.
        self._no_unknown = len(texts) if unknown is None else None
        seen: set[str] = set()
        pieces: list[bytes] = []
        byte_values: set[int] = set()
        for token, (text, kind, score) in enumerate(zip(texts, types, scores, strict=True)):
            if kind == BYTE:
                value = byte_value((text or "").encode("utf-8"))
                if value is None:
                    raise TokenizerError(
                        f"{KEY}tokens[{token}]: expected a byte token (type 6) like '<0x0A>', "
                        f"found {text!r}"
                    )
                byte_values.add(value)
            # It also refuses empty or repeated pieces. Control pieces are never made from text,
            # and user-defined tokens are found before the library sees the text.
            name = text if text and text not in seen else f"<pyengine:{token}>"
            hidden = name != text or kind in (UNKNOWN, USER_DEFINED)
            piece_kind = UNKNOWN if token == unknown else CONTROL if hidden else kind
            seen.add(name)
            pieces.append(_piece(name, score, piece_kind))
        if byte_values and len(byte_values) != 256:
            raise TokenizerError(
                f"{KEY}token_type: expected byte tokens (type 6) for all 256 bytes or none, "
                f"found {len(byte_values)}"
            )
        if unknown is None:
            pieces.append(_piece("<pyengine:unknown>", 0.0, UNKNOWN))
        model = b"".join(_field(1, piece) for piece in pieces)
        # TrainerSpec: model_type, byte_fallback.
        model_type = _UNIGRAM if unigram else _BPE
        model += _field(2, _field(3, model_type) + _field(35, int(bool(byte_values))))
        # NormalizerSpec: name, precompiled_charsmap, add_dummy_prefix, remove_extra_whitespaces,
        # escape_whitespaces.
        rules = metadata.octets("precompiled_charsmap") if unigram else b""
        prefix = unigram and metadata.flag("add_space_prefix", default=False)
        squeeze = unigram and metadata.flag("remove_extra_whitespaces", default=False)
        model += _field(
            3,
            _field(1, b"identity")
            + (_field(2, rules) if rules else b"")
            + _field(3, int(prefix))
            + _field(4, int(squeeze))
            + _field(5, 1),
        )
        self._processor: Any = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, OSError, ValueError) as error:
            raise TokenizerError(
                f"{KEY}tokens: expected a SentencePiece vocabulary, found: {error}"
            ) from error

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(text)
        if self._no_unknown in ids:
            raise TokenizerError(
                f"{KEY}token_type: expected byte tokens or an unknown token (type 2) for "
                "characters outside the vocabulary, found neither"
            )
        return ids

    def token_bytes(self, raw: bytes) -> bytes:
        return raw.replace("\u2581".encode(), b" ")


def _varint(value: int) -> bytes:
    """Protobuf's integer: 7 bits a byte, lowest first, the top bit set on all but the last."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _field(number: int, value: int | float | bytes) -> bytes:
    """One protobuf field: the key (number and wire type) and the value."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


def _piece(text: str, score: float, kind: int) -> bytes:
    """A SentencePiece message; its types have the numbers of GGUF's, which took them from it."""
    return _field(1, text.encode("utf-8")) + _field(2, score) + _field(3, kind)
