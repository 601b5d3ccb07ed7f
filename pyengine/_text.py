"""Text that arrives in pieces: bytes to characters, and stop strings that never leak.

Neither class knows of tokens. Both give the same result however the input is cut into pieces.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from pyengine._errors import ArgumentError


class Utf8Stream:
    """Turns a stream of bytes into text without ever emitting half a character.

    A token may end in the middle of a character, so the last few bytes can be held back until the
    next call. Invalid bytes become U+FFFD, exactly where ``bytes.decode("utf-8", "replace")``
    would put them if it saw the whole stream at once.
    """

    def __init__(self) -> None:
        """Starts at the beginning of a text."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """Takes the next bytes.

        Args:
            data: Any number of bytes, none included.

        Returns:
            The characters that are now complete; often empty.
        """
        return self._decoder.decode(data)

    def flush(self) -> str:
        """Ends the text; the object can then be used for another one.

        Returns:
            U+FFFD if the text ended inside a character, else nothing.
        """
        return self._decoder.decode(b"", final=True)


class StopMatcher:
    """Cuts a stream of text at the first stop string.

    Text that might be the beginning of a stop string is held back, so no part of one is emitted.
    The stop string that is complete first wins, as if the text came one character at a time; of
    several that end at the same character, the longest does.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Starts at the beginning of a text.

        Args:
            stops: The stop strings; with none, all text passes through at once.

        Raises:
            ArgumentError: A stop string is empty, or ``stops`` is itself a string.
        """
        # A lone string is a sequence of strings too: every letter of it would stop the text.
        if isinstance(stops, str):
            raise ArgumentError(f"stop: expected a sequence of strings, found {stops!r}")
        for index, stop in enumerate(stops):
            if not isinstance(stop, str) or not stop:
                raise ArgumentError(f"stop[{index}]: expected a non-empty string, found {stop!r}")
        self._stops = tuple(stops)
        self._held = ""
        self._stopped = False

    def feed(self, text: str) -> tuple[str, bool]:
        """Takes the next text.

        Args:
            text: Any number of characters, none included.

        Returns:
            The text that is safe to emit, and whether a stop string was met. Once it was, this
            and every later call return no more text than what stood before it.
        """
        if self._stopped:
            return "", True
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._stopped = True
            self._held = ""
            return text[: min(found)[1]], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """Ends the text for another reason than a stop string.

        Returns:
            The text held back, which turned out to begin no stop string.
        """
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop`` without completing it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
