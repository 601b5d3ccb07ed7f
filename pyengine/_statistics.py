"""Means, quantiles and differences with what is known of their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean or a share.

    Attributes:
        value: The mean.
        error: Its standard error; NaN of a single value.
    """

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile with its 95 % confidence interval, whatever the distribution is.

    Attributes:
        value: Between the two nearest values, linearly.
        low, high: The interval; infinite on a side that so few values do not bound.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """What a second model has more than the first, with its 95 % confidence interval.

    Attributes:
        name: What differs, such as ``"loss"`` or ``"hellaswag acc_norm"``.
        value: The second's mean less the first's, pair by pair.
        low, high: The interval; infinite of a single unit.
        n: Independent units behind the interval: windows of a text, or questions.
        lower_is_better: Whether the model with less is the better one.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    lower_is_better: bool

    @property
    def better(self) -> int | None:
        """0 where the first model is better, 1 where the second is, None where 0 is inside."""
        if self.low <= 0 <= self.high:
            return None
        return int((self.high < 0) == self.lower_is_better)


def mean(values: Any) -> Mean:
    """The mean of numbers with its standard error, taking them as independent."""
    values = np.asarray(values, np.float64)
    spread = float(values.std(ddof=1)) if values.size > 1 else math.nan
    return Mean(float(values.mean()), spread / math.sqrt(values.size))


def window_error(values: Floats) -> float:
    """Standard error of the mean of ``[window, token]`` from how windows differ.

    Tokens of one window share what came before, so they vary together, and the error that
    takes them as independent is too small.
    """
    means = values.mean(axis=1)
    return float(means.std(ddof=1)) / math.sqrt(means.size) if means.size > 1 else math.nan


def quantile(ordered: Floats, share: float) -> Quantile:
    """A quantile of rising values; its interval lies between two of them.

    How many of n values lie below the true quantile is binomial, so ranks that far from n *
    share bound it (Conover, Practical Nonparametric Statistics, section 3.2).
    """
    n = ordered.size
    reach = _Z * math.sqrt(n * share * (1 - share))
    low, high = math.floor(n * share - reach), math.ceil(n * share + reach) + 1
    return Quantile(
        float(np.quantile(ordered, share)),
        float(ordered[low - 1]) if low >= 1 else -math.inf,
        float(ordered[high - 1]) if high <= n else math.inf,
    )


def window_difference(name: str, first: Floats, second: Floats) -> Difference:
    """Of numbers per token, ``[window, token]`` both; windows are the units."""
    apart = second - first
    value, n = float(apart.mean()), len(apart)
    reach = t_quantile(n - 1) * window_error(apart) if n > 1 else math.inf
    return Difference(name, value, value - reach, value + reach, n, lower_is_better=True)


def answer_difference(name: str, first: Sequence[bool], second: Sequence[bool]) -> Difference:
    """Of right answers to the same questions.

    The interval is Bonett and Price's (Statistics in Medicine 31, 2012): Wald's, with one
    more question that each side alone has right, so that it has a width without any.
    """
    pairs = list(zip(first, second, strict=True))
    n = len(pairs)
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    p, q = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    reach = _Z * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return Difference(
        name,
        (won - lost) / n,
        max(p - q - reach, -1.0),
        min(p - q + reach, 1.0),
        n,
        lower_is_better=False,
    )


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, to 0.2 % or better.

    Exact for 1 and 2 degrees of freedom, else the expansion 26.7.5 of Abramowitz and Stegun.
    """
    if freedom == 1:
        return math.tan(math.pi * 0.475)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z = _Z
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / float(freedom) ** i for i, term in enumerate(terms))
