"""A model's answers to questions: log-probabilities of endings, and greedy texts.

What questions share at their beginning is computed once, in a session that the others are
forks of, and several sessions stand in each pass over the weights. None of that shows in a
result: the same tokens give the same bits however they are fed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyengine._divergence import score_alternatives, score_rows
from pyengine._errors import ContextFullError, TokenizerError
from pyengine._perplexity import rows_at_once
from pyengine._session import CancelFlag, Logits, Session, feed_several
from pyengine._tasks import Question
from pyengine._text import StopMatcher, Utf8Stream

if TYPE_CHECKING:
    from pyengine._engine import Engine

# Sessions side by side. With so many columns a pass costs little more than with one, and
# their pages, a few each, stay small beside the weights.
_SESSIONS = 8
_ENDINGS = 16

Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as tokens.

    Attributes:
        group: As the question's.
        context: Tokens of what comes before the answer.
        endings: Tokens of each ending.
    """

    group: str
    context: Ids
    endings: tuple[Ids, ...]


def encode(engine: Engine, question: Question, n_new: int) -> Prompt:
    """The tokens of a question.

    An ending's tokens are those that the whole text has beyond the context's, so that a space
    may join the word behind it.

    Args:
        engine: Whose tokens.
        question: The question.
        n_new: Tokens that a free answer may have.

    Raises:
        ContextFullError: The context of the engine is too small; names the line.
    """
    context = np.array(engine.tokenize(question.prompt), np.uint32)
    endings = []
    for text in question.endings:
        whole = engine.tokenize(f"{question.prompt} {text}")
        if engine.tokenizer.add_eos and whole and whole[-1] == engine.tokenizer.eos_id:
            whole.pop()
        endings.append(np.array(whole[len(context) :], np.uint32))
        if not endings[-1].size:
            raise TokenizerError(
                f"{question.place}: expected tokens of the ending {text!r:.40} behind the "
                "question's, found none"
            )
    # The last token is predicted, not fed.
    need = len(context) + max((len(ending) for ending in endings), default=n_new) - 1
    if need > engine.n_ctx:
        raise ContextFullError(
            f"{question.place}: expected a question of {engine.n_ctx} tokens at most, the "
            f"context, found {need}"
        )
    return Prompt(question.group, context, tuple(endings))


def groups(prompts: Sequence[Prompt]) -> Iterator[Sequence[Prompt]]:
    """Neighbours that are computed together: a few, all of one group."""
    begin = 0
    for end in range(1, len(prompts) + 1):
        if (
            end == len(prompts)
            or end - begin == _SESSIONS
            or prompts[end].group != prompts[begin].group
        ):
            yield prompts[begin:end]
            begin = end


def branches(
    stack: ExitStack,
    engine: Engine,
    trunk: Session,
    prompts: Sequence[Prompt],
    cancel: CancelFlag | None,
) -> tuple[list[Session], Logits]:
    """A session behind each prompt, and the logits of what follows it.

    Args:
        stack: Closes the sessions.
        engine: Theirs.
        trunk: Holds what prompts before these began with, and these begin with after.
        prompts: A group.
        cancel: Stops the call.
    """
    first = prompts[0].context
    # The last token of each is computed in its own session, since its logits are wanted.
    n_shared = min(_n_common(first, prompt.context[:-1]) for prompt in prompts)
    trunk.rewind(min(n_shared, _n_common(np.array(trunk.tokens, np.uint32), first)))
    if trunk.n_tokens < n_shared:
        trunk.feed(first[trunk.n_tokens : n_shared], logits="none", cancel=cancel)
    sessions = [stack.enter_context(trunk.fork()) for _ in prompts]
    feeds = [
        (session, prompt.context[n_shared:], 1)
        for session, prompt in zip(sessions, prompts, strict=True)
    ]
    return sessions, feed_several(engine, feeds, cancel)


def _n_common(first: Ids, second: Ids) -> int:
    n = min(len(first), len(second))
    differ = np.flatnonzero(first[:n] != second[:n])
    return int(differ[0]) if differ.size else n


def ending_logprobs(
    engine: Engine,
    trunk: Session,
    prompts: Sequence[Prompt],
    workers: Executor,
    cancel: CancelFlag | None,
) -> list[list[float]]:
    """Natural-log probability of each ending of each prompt of a group."""
    with ExitStack() as stack:
        sessions, rows = branches(stack, engine, trunk, prompts, cancel)
        sums: list[list[float]] = []
        todo: list[tuple[int, int, Session]] = []
        for i, prompt in enumerate(prompts):
            first = np.array([ending[0] for ending in prompt.endings])
            sums.append((-score_alternatives(rows[i], first)).tolist())
            todo += [
                (i, j, sessions[i]) for j, ending in enumerate(prompt.endings) if len(ending) > 1
            ]
        for begin in range(0, len(todo), _ENDINGS):
            part = todo[begin : begin + _ENDINGS]
            endings = [prompts[i].endings[j] for i, j, _ in part]
            losses = _later_losses(engine, [s for _, _, s in part], endings, workers, cancel)
            for (i, j, _), loss in zip(part, losses, strict=True):
                sums[i][j] -= loss
    return sums


def _later_losses(
    engine: Engine,
    sessions: Sequence[Session],
    endings: Sequence[Ids],
    workers: Executor,
    cancel: CancelFlag | None,
) -> list[float]:
    """Sum of the losses of all tokens of each ending but its first, behind its session."""
    n_most = rows_at_once(engine.n_vocab)
    parts: list[list[float]] = [[] for _ in endings]
    with ExitStack() as stack:
        forks = [stack.enter_context(session.fork()) for session in sessions]
        # Pieces of (ending, from, to) that together want no more rows than are held at once.
        todo = [
            (i, begin, min(begin + n_most, len(ending) - 1))
            for i, ending in enumerate(endings)
            for begin in range(0, len(ending) - 1, n_most)
        ]
        while todo:
            # A piece behind which its ending goes on is n_most long, so that no session stands
            # in a pass twice.
            taken = [todo.pop(0)]
            while todo and sum(b - a for _, a, b in [*taken, todo[0]]) <= n_most:
                taken.append(todo.pop(0))
            feeds = [(forks[i], endings[i][begin:end], end - begin) for i, begin, end in taken]
            rows = feed_several(engine, feeds, cancel)
            targets = np.concatenate([endings[i][begin + 1 : end + 1] for i, begin, end in taken])
            losses = score_rows([rows], None, targets, workers).losses[0]
            at = 0
            for i, begin, end in taken:
                parts[i] += losses[at : at + end - begin].tolist()
                at += end - begin
    return [float(np.sum(part)) for part in parts]


def greedy_texts(
    engine: Engine,
    trunk: Session,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    stops: Sequence[str],
    cancel: CancelFlag | None,
) -> list[str]:
    """Each prompt's continuation by its most likely tokens, all prompts side by side.

    The same texts as :meth:`Engine.generate` gives one by one with temperature 0.
    """
    with ExitStack() as stack:
        sessions, rows = branches(stack, engine, trunk, prompts, cancel)
        writers = [_Writer(engine, session, max_tokens, stops) for session in sessions]
        live = list(writers)
        while True:
            tokens = rows.argmax(axis=1)
            live = [w for w, token in zip(live, tokens, strict=True) if w.accept(int(token))]
            if not live:
                return [writer.text for writer in writers]
            feeds = [(writer.session, writer.last, 1) for writer in live]
            rows = feed_several(engine, feeds, cancel)


class _Writer:
    """One continuation as it grows."""

    def __init__(
        self, engine: Engine, session: Session, max_tokens: int, stops: Sequence[str]
    ) -> None:
        self.session = session
        self.text = ""
        self.last = np.empty(0, np.uint32)
        self._engine = engine
        self._left = max_tokens
        self._utf8 = Utf8Stream()
        self._matcher = StopMatcher(stops)

    def accept(self, token: int) -> bool:
        """Takes the next token and gives whether there is to be another one."""
        if token in self._engine.tokenizer.eog_ids:
            return self._finish()
        self.last = np.array([token], np.uint32)
        self._left -= 1
        data = self._engine.tokenizer.token_bytes(token, skip_special=True)
        piece, stopped = self._matcher.feed(self._utf8.feed(data))
        self.text += piece
        if stopped:
            return False
        return True if self._left else self._finish()

    def _finish(self) -> bool:
        piece, stopped = self._matcher.feed(self._utf8.flush())
        self.text += piece if stopped else piece + self._matcher.flush()
        return False
