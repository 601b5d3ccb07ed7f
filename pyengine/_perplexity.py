"""A text under one model or several: cut into windows, scored token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyengine._arguments import integer
from pyengine._divergence import RowScores, score_rows
from pyengine._errors import ArgumentError, CancelledError
from pyengine._session import CancelFlag, Session
from pyengine._statistics import Floats, mean, window_error

if TYPE_CHECKING:
    from pyengine._engine import Engine

# Logits held at a time, per model: 64 MB, which is 64 rows of a vocabulary of 262,144.
_LOGITS = 1 << 24
# A pass of more tokens than this gains nothing.
_MOST_ROWS = 256


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        value: exp of the mean negative log-probability per scored token.
        error: Its standard error, from the spread over tokens, as llama.cpp's tool gives it.
        window_error: The same from the spread over windows: larger, and nearer to the truth,
            since tokens of a window vary together.
        n_tokens: Tokens scored.
        n_windows: Windows the text was cut into.
        losses: Negative log-probabilities, ``[window, token]``.
    """

    value: float
    error: float
    window_error: float
    n_tokens: int
    n_windows: int
    losses: Floats = field(repr=False, compare=False)


def perplexity(losses: Floats) -> Perplexity:
    """Sums up the losses of a text, ``[window, token]``."""
    loss = mean(losses)
    value = math.exp(loss.value)
    return Perplexity(
        value=value,
        error=value * loss.error,
        window_error=value * window_error(losses),
        n_tokens=losses.size,
        n_windows=len(losses),
        losses=losses,
    )


def text_perplexity(
    engine: Engine, text: str, window: int, progress: Callable[[int, int], None] | None
) -> Perplexity:
    """See :meth:`Engine.perplexity`."""

    def report(done: int, total: int) -> None:
        if progress is not None and done % window == 0:
            progress(done // window, total // window)

    scores = score_text([engine], None, text, window, report)
    return perplexity(np.array([part.losses[0] for part in scores]))


def rows_at_once(n_vocab: int) -> int:
    """Rows of logits that are held at a time, per model."""
    return max(1, min(_MOST_ROWS, _LOGITS // n_vocab))


def score_text(
    models: Sequence[Engine],
    reference: Engine | None,
    text: str,
    window: int,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelFlag | None = None,
) -> list[RowScores]:
    """Scores the second half of each window of a text, as llama.cpp's perplexity tool does.

    All models see the same tokens, the first one's, and hold one window at a time.

    Args:
        models: At least one; all with the same vocabulary.
        reference: What divergences are measured by, if they are.
        text: Long enough for one window; a rest of less than one is left out.
        window: Tokens, 4 to the smallest context.
        progress: Called with tokens done and in all.
        cancel: Ends it; windows that are done count.

    Returns:
        One item per window.

    Raises:
        ArgumentError: The window or the text's length is impossible.
        CancelledError: ``cancel`` was raised before the first window was done.
    """
    engines = [*models] if reference is None else [*models, reference]
    window = integer("window", window, 4, min(engine.n_ctx for engine in engines))
    windows = text_windows(models[0], text, window)
    done: list[RowScores] = []
    with ExitStack() as stack:
        workers = stack.enter_context(ThreadPoolExecutor(models[0].info.n_threads))
        sessions = [stack.enter_context(engine.session()) for engine in engines]
        try:
            for i, part in enumerate(windows):
                scores = []
                for n_seen, score in _score_window(
                    sessions, reference is not None, part, workers, cancel
                ):
                    scores.append(score)
                    if progress is not None:
                        progress(i * window + n_seen, windows.size)
                done.append(RowScores.joined(scores))
        except CancelledError:
            if not done:
                raise
    return done


def text_windows(
    engine: Engine, text: str, window: int, *, n_least: int = 1
) -> npt.NDArray[np.uint32]:
    """The text's tokens, ``[n_windows, window]``, each begun with the model's begin token.

    Raises:
        ArgumentError: The text makes fewer than ``n_least`` windows.
    """
    ids = engine.tokenize(text, add_special=False)
    begin = engine.tokenizer.bos_id if engine.tokenizer.add_bos else None
    if begin is not None:
        ids.insert(0, begin)
    n_windows = len(ids) // window
    if n_windows < n_least:
        wanted = "one window" if n_least == 1 else f"{n_least} windows"
        raise ArgumentError(
            f"text: expected {n_least * window} tokens or more, {wanted}, found {len(ids)}"
        )
    windows = np.array(ids[: n_windows * window], np.uint32).reshape(n_windows, window)
    if begin is not None:
        windows[:, 0] = begin
    return windows


def _score_window(
    sessions: Sequence[Session],
    has_reference: bool,
    ids: npt.NDArray[np.uint32],
    workers: Executor,
    cancel: CancelFlag | None,
) -> Iterator[tuple[int, RowScores]]:
    """Scores of ids[n // 2 + 1:], each given all before it, with how many are behind then."""
    first, last = len(ids) // 2, len(ids) - 1
    for session in sessions:
        session.rewind(0)
        session.feed(ids[:first], logits="none", cancel=cancel)
    step = rows_at_once(sessions[0].n_vocab)
    for begin in range(first, last, step):
        end = min(begin + step, last)
        rows = [session.feed(ids[begin:end], logits="all", cancel=cancel) for session in sessions]
        reference = rows.pop() if has_reference else None
        yield (
            end + 1 if end == last else end,
            score_rows(rows, reference, ids[begin + 1 : end + 1], workers),
        )
