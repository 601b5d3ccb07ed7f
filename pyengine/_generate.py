"""The generation loop: prompt in slices, token by token, text as it becomes certain."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pyengine._arguments import instance, integer
from pyengine._errors import CancelledError, ContextFullError
from pyengine._native import Handle
from pyengine._sampler import Sampler, top_logprobs
from pyengine._session import CancelFlag, Logits, Session
from pyengine._text import StopMatcher, Utf8Stream

if TYPE_CHECKING:
    from pyengine._engine import Engine

FinishReason = Literal["stop", "length", "eos", "cancelled"]
Progress = Callable[[int, int], None]

# A prompt is fed in slices of about this many seconds, so that Ctrl-C and progress
# come through. How it is cut does not change results.
_SLICE_SECONDS = 0.25
_FIRST_SLICE = 32


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds.

    Attributes:
        load_seconds: Opening the engine.
        prefill_seconds: Computing the prompt.
        decode_seconds: Computing the tokens after the first, which the prompt yields.
        n_prefill: Tokens computed in ``prefill_seconds``.
        n_decode: Tokens computed in ``decode_seconds``.
    """

    load_seconds: float
    prefill_seconds: float
    decode_seconds: float
    n_prefill: int
    n_decode: int

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens per second; 0 when there were none."""
        return self.n_prefill / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Generated tokens per second; 0 when there were none."""
        return self.n_decode / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token and what the model made of it, before any sampling option.

    Attributes:
        token: Its id.
        text: Its text; bytes that are no whole characters become U+FFFD.
        logprob: Natural-log probability.
        top: The most likely tokens at this place with their log-probabilities.
    """

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a generation."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Generation:
    """What a generation gave.

    Attributes:
        text: Without the stop string or end token that ended it.
        tokens: Ids behind the text, a stop string's included, the end token's not.
        finish_reason: ``"stop"``: a stop string; ``"eos"``: an end token; ``"length"``:
            max_tokens or the context's end; ``"cancelled"``: cancelled or interrupted.
        usage: Token counts.
        timings: Where the time went.
        seed: Give it again to get the same text.
        logprobs: One entry per token when asked for, else None.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int
    logprobs: list[TokenLogprob] | None


@dataclass(frozen=True, slots=True)
class Turn:
    """What a chat asks of a generation beyond a prompt's.

    Attributes:
        ends: Tokens that end the text.
        named: Control tokens that stand in the text by their names.
        session: Where to compute: what it holds of the prompt's beginning is kept, all else
            dropped. None: in a session of its own.
    """

    ends: frozenset[int]
    named: frozenset[int] = field(default_factory=frozenset)
    session: Session | None = None


class Stream(Handle, Iterator[str]):
    """Text pieces of a running generation, from :meth:`Engine.generate`.

    A piece never holds part of a character, and no piece holds part of a stop string.
    Nothing is computed until the first piece is asked for. Leaving a ``for`` loop early
    and dropping the stream frees its memory; :meth:`close` does so at once.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: list[int],
        sampler: Sampler,
        *,
        seed: int,
        max_tokens: int | None,
        stop: str | Sequence[str] | None,
        n_logprobs: int | None,
        cancel: CancelFlag | None,
        progress: Progress | None,
        turn: Turn | None = None,
    ) -> None:
        if len(prompt) > engine.n_ctx:
            raise ContextFullError(
                f"prompt: expected at most {engine.n_ctx} tokens, the context, found {len(prompt)}"
            )
        if max_tokens is not None:
            max_tokens = integer("max_tokens", max_tokens, 0, 2**63 - 1)
        if n_logprobs is not None:
            n_logprobs = integer("logprobs", n_logprobs, 0, engine.n_vocab)
        if cancel is not None:
            instance("cancel", cancel, CancelFlag, "a CancelFlag")
        if progress is not None:
            instance("progress", progress, Callable, "something to call")  # type: ignore[arg-type]
        self._run = _Run(
            engine,
            prompt,
            sampler,
            seed=seed,
            max_tokens=max_tokens,
            stops=_stop_strings(stop),
            n_logprobs=n_logprobs,
            cancel=cancel if cancel is not None else CancelFlag(),
            progress=progress,
            turn=turn if turn is not None else Turn(engine.tokenizer.eog_ids),
        )
        # The pieces know the run, not the stream: a stream that is dropped frees its
        # pages at once, with no cycle to collect first.
        self._pieces = self._run.pieces()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def cancel(self) -> None:
        """Ends the generation from any thread, within about one layer's time."""
        self._run.cancel.cancel()

    def close(self) -> None:
        """Ends the generation and frees its memory; from the thread that iterates."""
        self._pieces.close()

    @property
    def result(self) -> Generation:
        """What there is so far; finish_reason is ``"cancelled"`` until it ends otherwise."""
        return self._run.result()


def _stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    if isinstance(stop, str):
        return (stop,)
    instance("stop", stop, Sequence, "a string or a sequence of strings")
    return tuple(stop)


class _Run:
    """The loop behind a stream, and what it has given so far."""

    def __init__(
        self,
        engine: Engine,
        prompt: list[int],
        sampler: Sampler,
        *,
        seed: int,
        max_tokens: int | None,
        stops: Sequence[str],
        n_logprobs: int | None,
        cancel: CancelFlag,
        progress: Progress | None,
        turn: Turn,
    ) -> None:
        self.cancel = cancel
        self._engine = engine
        self._prompt = prompt
        self._sampler = sampler
        self._seed = seed
        self._max_tokens = max_tokens
        self._n_logprobs = n_logprobs
        self._progress = progress
        self._turn = turn
        self._utf8 = Utf8Stream()
        self._matcher = StopMatcher(stops)
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._finish_reason: FinishReason = "cancelled"
        self._prefill_seconds = 0.0
        self._decode_seconds = 0.0
        self._n_prefill = 0
        self._n_decode = 0

    def result(self) -> Generation:
        return Generation(
            text="".join(self._text),
            tokens=list(self._tokens),
            finish_reason=self._finish_reason,
            usage=Usage(len(self._prompt), len(self._tokens)),
            timings=Timings(
                self._engine.load_seconds,
                self._prefill_seconds,
                self._decode_seconds,
                self._n_prefill,
                self._n_decode,
            ),
            seed=self._seed,
            logprobs=None if self._n_logprobs is None else list(self._logprobs),
        )

    def pieces(self) -> Generator[str, None, None]:
        given = self._turn.session
        with nullcontext(given) if given is not None else self._engine.session() as session:
            try:
                yield from self._generate(session)
            except CancelledError:
                self._finish_reason = "cancelled"

    def _generate(self, session: Session) -> Iterator[str]:
        if self._max_tokens == 0:
            self._finish_reason = "length"
            return
        logits = self._prefill(session)
        for token in self._prompt:
            self._sampler.accept(token)
        while True:
            if self.cancel.is_cancelled:
                raise CancelledError("generation cancelled")
            token = self._sampler.pick(logits[0])
            if token in self._turn.ends:
                self._finish_reason = "eos"
                break
            self._sampler.accept(token)
            self._note(token, logits)
            data = self._engine.tokenizer.token_bytes(
                token, skip_special=token not in self._turn.named
            )
            piece, stopped = self._matcher.feed(self._utf8.feed(data))
            yield from self._emit(piece)
            if stopped:
                self._finish_reason = "stop"
                return
            if len(self._tokens) == self._max_tokens or session.n_tokens == self._engine.n_ctx:
                self._finish_reason = "length"
                break
            started = time.perf_counter()
            logits = session.feed([token], cancel=self.cancel)
            self._decode_seconds += time.perf_counter() - started
            self._n_decode += 1
        # What was held back, in case it began a stop string or a character, is text now.
        piece, stopped = self._matcher.feed(self._utf8.flush())
        yield from self._emit(piece if stopped else piece + self._matcher.flush())
        if stopped:
            self._finish_reason = "stop"

    def _emit(self, piece: str) -> Iterator[str]:
        if piece:
            self._text.append(piece)
            yield piece

    def _prefill(self, session: Session) -> Logits:
        total = len(self._prompt)
        held = session.tokens
        # The last token is always computed: its logits are not kept.
        kept = next(
            (i for i, (a, b) in enumerate(zip(held, self._prompt, strict=False)) if a != b), None
        )
        session.rewind(min(len(held) if kept is None else kept, total - 1))
        n_slice = _FIRST_SLICE
        while True:
            part = self._prompt[session.n_tokens : session.n_tokens + n_slice]
            last = session.n_tokens + len(part) == total
            started = time.perf_counter()
            logits = session.feed(part, logits="last" if last else "none", cancel=self.cancel)
            seconds = time.perf_counter() - started
            self._prefill_seconds += seconds
            self._n_prefill += len(part)
            if self._progress is not None:
                self._progress(session.n_tokens, total)
            if last:
                return logits
            rate = len(part) / max(seconds, 1e-6)
            n_slice = max(1, min(int(rate * _SLICE_SECONDS), 4 * n_slice))

    def _note(self, token: int, logits: Logits) -> None:
        self._tokens.append(token)
        if self._n_logprobs is None:
            return
        # Asking for all ranks down to the chosen token would cost a sort of the
        # vocabulary; its own log-probability follows from any other's.
        top = top_logprobs(logits[0], max(self._n_logprobs, 1))
        first, first_logprob = top[0]
        logprob = first_logprob + float(logits[0][token]) - float(logits[0][first])
        text = self._engine.tokenizer.token_bytes(token).decode("utf-8", "replace")
        self._logprobs.append(TokenLogprob(token, text, logprob, tuple(top[: self._n_logprobs])))
