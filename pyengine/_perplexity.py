"""Perplexity of a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyengine._arguments import integer
from pyengine._errors import ArgumentError
from pyengine._sampler import logprobs
from pyengine._session import Session

if TYPE_CHECKING:
    from pyengine._engine import Engine

# Rows of logits that perplexity holds at a time: 64 rows of a 128k vocabulary are 33 MB.
_SCORED_ROWS = 64


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        value: exp of the mean negative log-probability per scored token.
        error: Its standard error, from the spread over tokens.
        n_tokens: Tokens scored.
        n_windows: Windows the text was cut into.
    """

    value: float
    error: float
    n_tokens: int
    n_windows: int


def perplexity(
    engine: Engine, text: str, window: int, progress: Callable[[int, int], None] | None
) -> Perplexity:
    """See :meth:`Engine.perplexity`."""
    window = integer("window", window, 4, engine.n_ctx)
    begin = engine.tokenizer.add_bos and engine.tokenizer.bos_id is not None
    ids = engine.tokenize(text, add_special=False)
    if begin:
        ids.insert(0, engine.tokenizer.bos_id or 0)
    n_windows = len(ids) // window
    if n_windows == 0:
        raise ArgumentError(f"text: expected {window} tokens or more, one window, found {len(ids)}")
    scores: list[np.ndarray[Any, Any]] = []
    with engine.session() as session:
        for i in range(n_windows):
            part = ids[i * window : (i + 1) * window]
            if begin:
                part[0] = engine.tokenizer.bos_id or 0
            session.rewind(0)
            scores.extend(_score(session, part, window // 2))
            if progress is not None:
                progress(i + 1, n_windows)
    losses = -np.concatenate(scores).astype(np.float64)
    value = math.exp(losses.mean())
    spread = losses.std(ddof=1) if losses.size > 1 else math.nan
    return Perplexity(value, value * spread / math.sqrt(losses.size), losses.size, n_windows)


def _score(session: Session, ids: list[int], n_seen: int) -> Iterator[np.ndarray[Any, Any]]:
    """Log-probabilities of ids[n_seen + 1:], each given all before it."""
    session.feed(ids[:n_seen], logits="none")
    for begin in range(n_seen, len(ids) - 1, _SCORED_ROWS):
        end = min(begin + _SCORED_ROWS, len(ids) - 1)
        rows = session.feed(ids[begin:end], logits="all")
        yield logprobs(rows, np.array(ids[begin + 1 : end + 1], np.uint32))
