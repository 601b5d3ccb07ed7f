"""Losses and Kullback-Leibler divergences, token by token, from rows of logits."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pyengine._session import Logits
from pyengine._statistics import Floats, Mean, Quantile, mean, quantile, window_error

Bools = npt.NDArray[np.bool_]

# Logits of one worker at a time: three arrays of so many doubles stay in a core's second-level
# cache. Rows never share a sum, so how they are dealt out does not show in any number.
_PIECE = 1 << 15


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far a model's next-token distributions are from a reference's, on a text.

    Of each scored token, the divergence is sum p * (ln p - ln q) over the vocabulary, p being
    the reference's probability and q the model's, in nats.

    Attributes:
        mean: Over all scored tokens.
        window_error: The mean's standard error from the spread over windows, see
            :class:`Perplexity`.
        median, p99: Half and 99 % of the tokens are below.
        maximum: The worst token.
        same_top: Share of tokens whose most likely successor is the same in both.
        log_ratio: ln of the model's perplexity over the reference's: the mean difference of
            the two losses of each token.
        n_tokens: Tokens scored.
        values: Of each, ``[window, token]``.
    """

    mean: Mean
    window_error: float
    median: Quantile
    p99: Quantile
    maximum: float
    same_top: Mean
    log_ratio: Mean
    n_tokens: int
    values: Floats = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class RowScores:
    """Of rows of logits with the tokens that followed; the last axis counts rows.

    Attributes:
        losses: ``[models, n]``, the reference's last: -ln of the probability of what followed.
        divergences: ``[models, n]``, without the reference; empty where there is none.
        same_top: The same shape: whether the largest logit is the reference's.
    """

    losses: Floats
    divergences: Floats
    same_top: Bools

    @staticmethod
    def joined(parts: Sequence[RowScores]) -> RowScores:
        """Rows of several, one after another."""
        return RowScores(
            np.concatenate([part.losses for part in parts], axis=-1),
            np.concatenate([part.divergences for part in parts], axis=-1),
            np.concatenate([part.same_top for part in parts], axis=-1),
        )


def score_rows(
    rows: Sequence[Logits],
    reference: Logits | None,
    targets: npt.NDArray[np.integer],
    workers: Executor,
) -> RowScores:
    """Scores rows of each model in double precision.

    Args:
        rows: ``[n, n_vocab]`` of each model, finite.
        reference: The same of the model that they are measured by, or None.
        targets: The n tokens that followed.
        workers: Threads that share the rows.
    """
    n, n_vocab = rows[0].shape
    step = max(1, _PIECE // n_vocab)

    def piece(begin: int) -> RowScores:
        part = slice(begin, begin + step)
        return _score_piece(
            [one[part] for one in rows],
            None if reference is None else reference[part],
            targets[part],
        )

    return RowScores.joined(list(workers.map(piece, range(0, n, step))))


def _score_piece(
    rows: Sequence[Logits], reference: Logits | None, targets: npt.NDArray[np.integer]
) -> RowScores:
    at = np.arange(len(targets)), targets
    losses, divergences, same_top = [], [], []
    if reference is not None:
        p, top = _less_largest(reference)
        exp_p = np.exp(p)
        sum_p = exp_p.sum(axis=1)
        log_p = np.log(sum_p)
    for one in rows:
        q, own_top = _less_largest(one)
        exp_q = np.exp(q)
        log_q = np.log(exp_q.sum(axis=1))
        losses.append(log_q - q[at])
        if reference is not None:
            # ln p - ln q is (p - log_p) - (q - log_q). Rounding alone can bring the sum below 0.
            np.subtract(p, q, out=q)
            np.multiply(q, exp_p, out=q)
            divergences.append(np.maximum(q.sum(axis=1) / sum_p - log_p + log_q, 0.0))
            same_top.append(own_top == top)
    if reference is not None:
        losses.append(log_p - p[at])
    n = len(targets)
    return RowScores(
        np.array(losses),
        np.array(divergences).reshape(-1, n),
        np.array(same_top, np.bool_).reshape(-1, n),
    )


def score_alternatives(row: Logits, targets: npt.NDArray[np.integer]) -> Floats:
    """Losses of several tokens that might follow, from one row of logits ``[n_vocab]``."""
    wide, _ = _less_largest(row[None, :])
    losses: Floats = np.log(np.exp(wide).sum(axis=1)) - wide[0, targets]
    return losses


def _less_largest(rows: Logits) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Rows less their largest value, exactly, and where that stands first."""
    top = rows.argmax(axis=1)
    wide = rows.astype(np.float64)
    wide -= wide[np.arange(len(rows)), top][:, None]
    return wide, top


def divergence(values: Floats, same_top: Bools, losses: Floats, reference: Floats) -> Divergence:
    """Sums up one model's scores, all ``[window, token]``."""
    ordered = np.sort(values, axis=None)
    return Divergence(
        mean=mean(values),
        window_error=window_error(values),
        median=quantile(ordered, 0.5),
        p99=quantile(ordered, 0.99),
        maximum=float(ordered[-1]),
        same_top=mean(same_top),
        log_ratio=mean(losses - reference),
        n_tokens=values.size,
        values=values,
    )
