"""config.json read with checks: every value that is used has its type and range looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pyengine._errors import ConversionError

_MAX_INT = 2**31 - 1


class Config:
    """Typed look-ups in one JSON object. null counts as absent, as transformers has it."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        """Wraps an object.

        Args:
            values: The parsed JSON.
            where: What error messages call it.
        """
        self.values = values
        self.where = where

    def fail(self, key: str, expected: str) -> ConversionError:
        """The error for a value that is not as expected."""
        found = repr(self.values[key])[:80] if key in self.values else "nothing"
        return ConversionError(f"{self.where}: {key}: expected {expected}, found {found}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer; without a default the key must be there."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_INT:
            raise self.fail(key, "a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number; without a default the key must be there."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(key, "a positive number")
        try:
            number = float(value)
        except OverflowError:
            raise self.fail(key, "a positive number") from None
        if not math.isfinite(number) or number <= 0:
            raise self.fail(key, "a positive number")
        return number

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.fail(key, "a string")
        return value

    def section(self, key: str) -> Config | None:
        """An object inside this one, or None."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(key, "an object")
        return Config(value, f"{self.where}: {key}")
