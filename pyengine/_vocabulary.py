"""A GGUF file's vocabulary: typed access to the ``tokenizer.ggml.*`` keys."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyengine._errors import TokenizerError

KEY = "tokenizer.ggml."

# Token types, as GGUF numbers them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


# What Unicode calls white space.
WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)

# Tokens that take the white space before or after them along, which GGUF has no keys for.
LEFT_KEY, RIGHT_KEY = "pyengine.tokenizer.lstrip_ids", "pyengine.tokenizer.rstrip_ids"

# How the original puts a space before text, where that is not before all text between special
# tokens: "first", at the very beginning alone, or "always"; neither before one that is there.
METASPACE_KEY = "pyengine.tokenizer.metaspace"

# Whether byte-level BPE composes letters and accents first (Unicode's form NFC), where it is not
# as the name of the pre-tokenizer says.
NFC_KEY = "pyengine.tokenizer.nfc"

_LARGEST_SCORE = 3.4028234e38


class Metadata:
    """Typed access to the ``tokenizer.ggml.*`` keys; every complaint names the key."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._values = metadata

    def text(self, name: str, default: str | None = None) -> str:
        value = self._values.get(KEY + name, default)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if value is None:
            raise TokenizerError(
                f"{KEY}{name}: expected the kind of tokenizer, found none; "
                "the file holds no tokenizer"
            )
        if not isinstance(value, str):
            raise TokenizerError(f"{KEY}{name}: expected a string, found {value!r}")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._values.get(KEY + name)
        if value is None:
            return default
        if not isinstance(value, bool | int) or value not in (0, 1):
            raise TokenizerError(f"{KEY}{name}: expected true or false, found {value!r}")
        return bool(value)

    def token_id(self, name: str, n_vocab: int) -> int | None:
        value = self._values.get(KEY + name)
        if value is None:
            return None
        try:
            token = operator.index(value)
        except TypeError:
            token = -1
        if not 0 <= token < n_vocab:
            raise TokenizerError(
                f"{KEY}{name}: expected an id from 0 to {n_vocab - 1}, found {value!r}"
            )
        return token

    def strings(self, name: str) -> list[bytes]:
        result: list[bytes] = []
        for index, value in enumerate(self._array(name)):
            if isinstance(value, str):
                # A reader may have smuggled invalid UTF-8 through as surrogates.
                result.append(value.encode("utf-8", "surrogateescape"))
            elif isinstance(value, bytes):
                result.append(value)
            else:
                raise TokenizerError(
                    f"{KEY}{name}[{index}]: expected a string, found {type(value).__name__}"
                )
        return result

    def octets(self, name: str) -> bytes:
        """An array of bytes, signed or not; empty if there is none."""
        if self._values.get(KEY + name) is None:
            return b""
        values = self._array(name)
        if not all(isinstance(value, int) and -128 <= value < 256 for value in values):
            raise TokenizerError(f"{KEY}{name}: expected an array of bytes, found other values")
        return bytes(value % 256 for value in values)

    def types(self, n_vocab: int, *, required: bool) -> list[int]:
        # A byte-level file can do without: then no token is special.
        if not required and self._values.get(KEY + "token_type") is None:
            return [NORMAL] * n_vocab
        values = self._array("token_type", n_vocab)
        for index, value in enumerate(values):
            if not isinstance(value, int) or not NORMAL <= value <= BYTE:
                raise TokenizerError(
                    f"{KEY}token_type[{index}]: expected types 1 to 6, found {value!r}"
                )
        return values

    def metaspace(self) -> str | None:
        """``"first"``, ``"always"``, or None for the plain prefix."""
        value = self._values.get(METASPACE_KEY)
        if value not in (None, "first", "always"):
            raise TokenizerError(f"{METASPACE_KEY}: expected first or always, found {value!r:.60}")
        return value

    def nfc(self, *, default: bool) -> bool:
        """Whether text is brought to NFC first."""
        value = self._values.get(NFC_KEY, default)
        if not isinstance(value, bool):
            raise TokenizerError(f"{NFC_KEY}: expected true or false, found {value!r:.60}")
        return value

    def stripping(
        self, texts: Sequence[str | None], types: Sequence[int]
    ) -> tuple[frozenset[int], frozenset[int]]:
        """Tokens that take white space before them along, and those that take it after them.

        Our converter writes them down. Phi 3's files of others are known by their name, as
        llama.cpp knows them.
        """
        left, right = (self._ids(key, len(texts)) for key in (LEFT_KEY, RIGHT_KEY))
        name = self._values.get("general.name")
        if isinstance(name, str) and re.search("phi-?3", name.lower()):
            kept = {"<unk>", "<s>", "<|endoftext|>"}
            right |= {
                token
                for token, text in enumerate(texts)
                if (types[token] in (CONTROL, USER_DEFINED) and text not in kept) or text == "</s>"
            }
        return left, right

    def _ids(self, key: str, n_vocab: int) -> frozenset[int]:
        value: Any = self._values.get(key, ())
        ids = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(ids, list | tuple) or not all(
            isinstance(token, int) and 0 <= token < n_vocab for token in ids
        ):
            raise TokenizerError(f"{key}: expected ids below {n_vocab}, found {value!r:.60}")
        return frozenset(ids)

    def scores(self, n_vocab: int) -> list[float]:
        values = self._array("scores", n_vocab)
        for index, value in enumerate(values):
            # Wider numbers would not fit the 32-bit field that they are copied to.
            if not isinstance(value, int | float) or not abs(value) <= _LARGEST_SCORE:
                raise TokenizerError(
                    f"{KEY}scores[{index}]: expected a 32-bit float, found {value!r}"
                )
        return [float(value) for value in values]

    def _array(self, name: str, length: int | None = None) -> list[Any]:
        value: Any = self._values.get(KEY + name)
        if hasattr(value, "tolist"):
            value = value.tolist()
        if not isinstance(value, list | tuple):
            found = "none" if value is None else f"{type(value).__name__} {value!r:.40}"
            raise TokenizerError(f"{KEY}{name}: expected an array, found {found}")
        if length is not None and len(value) != length:
            raise TokenizerError(
                f"{KEY}{name}: expected {length} entries, one for each of {KEY}tokens, "
                f"found {len(value)}"
            )
        return list(value)


def decodable(strings: Iterable[bytes]) -> list[str | None]:
    """Decodes UTF-8, with None for a string that is not."""
    result: list[str | None] = []
    for string in strings:
        try:
            result.append(string.decode("utf-8"))
        except UnicodeDecodeError:
            result.append(None)
    return result


def byte_value(name: bytes) -> int | None:
    """The value of a byte token named like ``<0x0A>``."""
    match = re.fullmatch(rb"<0x([0-9A-Fa-f]{2})>", name)
    return int(match[1], 16) if match else None
