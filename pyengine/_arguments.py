"""Checks of what callers pass, each ending in an ArgumentError that names the argument."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from pyengine._errors import ArgumentError

FLOAT_MAX = float(np.finfo(np.float32).max)


def integer(name: str, value: Any, low: int, high: int) -> int:
    """An integer from low to high; numpy's integers count, booleans do not."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"{name}: expected an integer, found {value!r}") from None
    if not low <= number <= high:
        power = high.bit_length()
        shown = f"2^{power} - 1" if high == 2**power - 1 and power >= 32 else str(high)
        raise ArgumentError(f"{name}: expected an integer from {low} to {shown}, found {number}")
    return number


def real(name: str, value: Any) -> float:
    """A number that the core's 32-bit floats hold; infinities and NaN are left to it."""
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        raise ArgumentError(f"{name}: expected a number, found {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = 1e300 if value > 0 else -1e300
    with np.errstate(over="ignore", under="ignore"):
        kept = float(np.float32(number))
    if math.isfinite(number) and (math.isinf(kept) or (number != 0 and kept == 0)):
        raise ArgumentError(f"{name}: expected a number that a 32-bit float holds, found {value!r}")
    return number


def choice(name: str, value: Any, choices: Mapping[str, Any]) -> Any:
    """What one of several words stands for."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
    return choices[value]


def instance(name: str, value: Any, kind: type, expected: str) -> None:
    """Refuses a value that is not of a type, which expected describes."""
    if not isinstance(value, kind):
        raise ArgumentError(f"{name}: expected {expected}, found {type(value).__name__}")
