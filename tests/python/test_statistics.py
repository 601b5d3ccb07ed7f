"""Means, quantiles and differences against numbers worked out by hand or by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pyengine._statistics import (
    answer_difference,
    mean,
    quantile,
    t_quantile,
    window_difference,
)


def test_mean_and_its_standard_error() -> None:
    found = mean([1.0, 2.0, 4.0])
    assert found.value == pytest.approx(7 / 3)
    # Squared distances from 7/3: 16/9 + 1/9 + 25/9 = 42/9, over 2, over 3.
    assert found.error == pytest.approx(math.sqrt(42 / 9 / 2 / 3))


def test_error_of_a_share_is_the_binomial_one() -> None:
    found = mean([True] * 30 + [False] * 10)
    assert found.value == 0.75
    assert found.error == pytest.approx(math.sqrt(0.75 * 0.25 / 39))


def test_a_single_value_has_no_error() -> None:
    assert mean([3.0]).value == 3.0
    assert math.isnan(mean([3.0]).error)


def test_quantile_between_two_values() -> None:
    assert quantile(np.array([1.0, 2.0, 3.0, 10.0]), 0.5).value == 2.5
    # llama.cpp's percentile: 0.99 * 99 = 98.01, a hundredth of the way from 98 to 99.
    assert quantile(np.arange(100.0), 0.99).value == pytest.approx(98.01)


def test_interval_of_a_median_lies_on_known_ranks() -> None:
    # 50 -+ 1.96 * 5: 40.2 and 59.8, so the 40th and the 61st value.
    found = quantile(np.arange(1.0, 101.0), 0.5)
    assert (found.low, found.high) == (40.0, 61.0)


def test_too_few_values_do_not_bound_a_quantile() -> None:
    found = quantile(np.arange(1.0, 101.0), 0.99)
    assert found.high == math.inf
    assert found.low < 98


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_intervals_of_quantiles_cover_the_true_one(share: float) -> None:
    rng = np.random.default_rng(11)
    true = -math.log(1 - share)  # of the exponential distribution
    hits = 0
    for _ in range(400):
        found = quantile(np.sort(rng.exponential(size=500)), share)
        hits += found.low <= true <= found.high
    assert 0.93 <= hits / 400 <= 0.995


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (5, 2.57058), (10, 2.22814), (75, 1.99210)],
)
def test_quantiles_of_students_distribution(freedom: int, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, rel=2e-3)


def test_difference_of_windows_by_hand() -> None:
    first = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 5.0]])
    second = first + np.array([[1.0, 3.0], [2.0, 2.0], [4.0, 6.0]])
    found = window_difference("loss", first, second)
    # Windows differ by 2, 2 and 5: mean 3, standard deviation sqrt(3), t of 2 degrees 4.30265.
    reach = 4.30265 * math.sqrt(3) / math.sqrt(3)
    assert found.value == pytest.approx(3.0)
    assert (found.low, found.high) == pytest.approx((3 - reach, 3 + reach), rel=1e-5)
    assert (found.n, found.better) == (3, None)
    sure = window_difference("loss", first, first + 1.0)
    assert (sure.low, sure.high, sure.better) == (1.0, 1.0, 0)
    assert window_difference("loss", first, first - 1.0).better == 1


def test_one_window_says_nothing_about_a_difference() -> None:
    found = window_difference("loss", np.zeros((1, 4)), np.ones((1, 4)))
    assert (found.low, found.high, found.better) == (-math.inf, math.inf, None)


def test_difference_of_answers_by_hand() -> None:
    pairs = [(True, True)] * 50 + [(False, True)] * 15 + [(True, False)] * 3 + [(False, False)] * 30
    first, second = zip(*pairs, strict=True)
    found = answer_difference("arc acc", first, second)
    p, q = 16 / 100, 4 / 100
    reach = 1.959964 * math.sqrt((p + q - (p - q) ** 2) / 100)
    assert found.value == pytest.approx(12 / 98)
    assert (found.low, found.high) == pytest.approx((p - q - reach, p - q + reach))
    assert (found.n, found.better) == (98, 1)


def test_equal_answers_still_leave_an_interval() -> None:
    found = answer_difference("arc acc", [True] * 20, [True] * 20)
    assert found.value == 0.0
    assert found.low < -0.05 < 0.05 < found.high
    assert found.better is None
